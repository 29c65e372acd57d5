"""Functional collectives: issued from C++ below Python's API, and waited for by whoever touches the
result.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
group = dist.group.WORLD
assert group is not None
for step in range(4):
    if rank == 2:
        time.sleep(0.1)
    reduced = funcol.all_reduce(torch.full((3,), float(rank)), "sum", group)
    gathered = funcol.all_gather_tensor(torch.full((1,), float(rank + step)), 0, group)
    assert reduced.tolist() == [3.0] * 3
    assert gathered.tolist() == [float(one + step) for one in range(world)]
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
