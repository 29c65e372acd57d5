# Who is wrong can't be told from the calls: rank 0 has one barrier too many, or the others one too few.
# META ws=3 guilty=1,2|0 opA=barrier|destroy_process_group opB=destroy_process_group|barrier
# META expect=missing|exited|mismatch class=rank0_only_barrier ref=alan-turing-institute/autocast#386
"""Rank 0 has a barrier of its own, which pairs with the others' next one; at the end one is left over.

Today: the job is done, and half an hour later it fails.
Wanted: rank 0 waits in a barrier that ranks 1, 2, whose programs are over, never entered.
"""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def save() -> None:
    dist.barrier()  # A B


for epoch in range(3):
    value = torch.ones(1) if epoch == 0 else None
    if value is not None:
        dist.all_reduce(value)
    if epoch == 1 and FAULTY and rank == 0:
        save()
    dist.barrier()  # A B
    time.sleep(0.05)
dist.destroy_process_group()  # A B
print(f"DONE {rank}", flush=True)
