# META ws=3 guilty=1 opA=barrier opB=all_gather expect=mismatch
# META class=object_collective ref=wxjiao/Data-Rejuvenation#1;pytorch/torchtitan#3051
"""A rank gathers once more to report an overflow; from there on it reads everybody's last object.

Today: an unpickling error, or logs that are one step old; then a hang at the end.
Wanted: rank 1 gathers a fifth object; ranks 0, 2 gathered four and are in the barrier.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def gather(value: object) -> list[object]:
    values: list[object] = [None] * world
    dist.all_gather_object(values, value)  # B
    return values


for step in range(4):
    gather({"step": step})
    if FAULTY and rank == 1 and step == 1:
        gather({"overflow": step})
dist.barrier()  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
