# META ws=3 guilty=1 opA=all_reduce opB=none expect=crashed
# META class=rank_crash ref=horovod/horovod#642
"""A C extension reads through a null pointer on one rank.

Today: "Connection closed by peer" on a victim.
Wanted: rank 1 died of SIGSEGV in decode; ranks 0, 2 wait in all_reduce.
"""

import ctypes
import os
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def decode(step: int) -> None:
    if FAULTY and rank == 1 and step == 2:
        ctypes.string_at(0)  # B


value = torch.zeros(1)
for step in range(4):
    decode(step)
    dist.all_reduce(value)  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
