"""torchmetrics: states of uneven length are gathered by shapes first, and rank 0 computes more often than the
rest without synchronising.
"""
# ranks: 2, patience: 60, needs: torchmetrics

import torch
import torch.distributed as dist
from torchmetrics import CatMetric, MeanMetric

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mean, every = MeanMetric(), CatMetric()
for step in range(3 + rank):
    mean.update(torch.tensor(float(rank)))
    every.update(torch.full((step + 1,), float(rank)))
assert abs(mean.compute().item() - 4 / 7) < 1e-6
assert every.compute().numel() == 6 + 10
if rank == 0:
    with torch.no_grad():
        alone = MeanMetric(sync_on_compute=False)
        alone.update(torch.ones(1))
        assert alone.compute() == 1.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
