"""Forked loader workers share their parent's memory, handlers and ledger: what they do and how they end is
not the rank's doing.
"""
# ranks: 2, patience: 20, quick

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
data = TensorDataset(torch.arange(32.0))
sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data, shuffle=False)
for persistent in (False, True):
    loader = DataLoader(
        data,
        batch_size=4,
        sampler=sampler,
        num_workers=2,
        multiprocessing_context="fork",
        persistent_workers=persistent,
    )
    total = torch.zeros(1)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for (batch,) in loader:
            part = batch.sum()
            dist.all_reduce(part)
            total += part
    assert total.item() == 2 * sum(range(32))
    del loader
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
