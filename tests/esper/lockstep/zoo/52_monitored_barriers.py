"""monitored_barrier in a loop: it blocks inside, in sends and receives of its own, and the ranks leave it one
after the other.
"""
# ranks: 3, patience: 20

import time
from datetime import timedelta

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
for step in range(30):
    if step % 10 == rank:
        time.sleep(0.1)
    dist.monitored_barrier(timeout=timedelta(seconds=60), wait_all_ranks=step % 2 == 0)
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
