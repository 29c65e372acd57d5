"""A rank is stopped and goes on after a second: state T, no answer to anything, and no fault."""
# ranks: 3, patience: 10

import os
import signal
import subprocess

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.ones(1)
for step in range(3):
    if rank == 2 and step == 1:
        child = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        child.wait()
    dist.all_reduce(value)
assert value.item() == 27.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
