"""One rank needs fifty times as long for a step as the others: at any moment it is the one that is
missing.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
total = 0.0
for step in range(20):
    time.sleep(0.05 if rank == 1 else 0.001)
    value = torch.tensor([float(step * rank)])
    dist.all_reduce(value)
    total += value.item()
assert total == 3 * sum(range(20))
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
