"""Ranks end one after the other, seconds apart, without destroying the group: a rank that is gone is only
missed by those who wait for it.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 3.0
pair = dist.new_group([1, 2])
if rank:
    time.sleep(0.5)
    for _ in range(5):
        dist.all_reduce(value, group=pair)
    assert value.item() == 96.0
    if rank == 2:
        time.sleep(1.0)
print(f"DONE {rank}", flush=True)
