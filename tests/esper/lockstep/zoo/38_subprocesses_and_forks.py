"""Children that inherit the rank's environment: one forked, that ends by `os._exit` with an error, and one
that runs a distributed job of its own.
"""
# ranks: 2, patience: 60

import os
import subprocess
import sys
import tempfile

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
child = os.fork()
if child == 0:
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
JOB = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
dist.all_reduce(torch.ones(3))
print(dist.get_world_size())
"""
if rank == 0:
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run(
            [sys.executable, "-c", JOB, f"{folder}/store"], capture_output=True, text=True, check=True
        )
    assert said.stdout == "1\n"
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 2.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
