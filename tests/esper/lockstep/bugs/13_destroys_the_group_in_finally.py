# META ws=3 guilty=2 opA=broadcast opB=destroy_process_group|none expect=raised
# META class=exception_one_rank ref=pytorch/torchtitan#1342
"""The trainer fails on one rank, and its clean-up destroys the process group.

Today: a reset connection on the others, or a hang in the clean-up.
Wanted: rank 2 raised KeyError in step 2; ranks 0, 1 wait in broadcast.
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


def step(number: int, batch: dict[str, float]) -> None:
    weight = torch.full((3,), batch["label"])  # B
    dist.broadcast(weight, src=number % 2)  # A


try:
    for number in range(5):
        step(number, {} if FAULTY and rank == 2 and number == 2 else {"label": 1.0})
finally:
    if FAULTY:
        dist.destroy_process_group()  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
