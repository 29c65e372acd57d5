"""A rank is stopped in the midst of a collective that all have entered: everybody waits, nobody is absent,
and it goes on a moment later.
"""
# ranks: 2, patience: 10

import os
import subprocess

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
child = None
if rank == 1:
    here = os.getpid()
    child = subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -STOP {here}; sleep 1; kill -CONT {here}"])
steps, more = 0, torch.ones(1)
while more.item():
    more[0] = float(child is None or child.poll() is None)
    dist.all_reduce(more, op=dist.ReduceOp.MIN)
    steps += 1
assert steps > 1
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
