"""A new group's members wait for each other, but not for those who are not in it: one of these still waits
for a message that a member sends when the group is made.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.zeros(1)
dist.all_reduce(value)
if rank == 1:
    time.sleep(1.0)
if rank == 2:
    dist.recv(value, 0)
pair = dist.new_group([0, 1])
if rank == 0:
    dist.send(torch.ones(1), 2)
if rank < 2:
    dist.all_reduce(value, group=pair)
assert value.item() == (1.0 if rank == 2 else 0.0)
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
