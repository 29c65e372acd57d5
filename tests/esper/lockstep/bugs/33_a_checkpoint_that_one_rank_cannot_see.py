# META ws=3 guilty=2 opA=broadcast opB=all_reduce expect=mismatch
# META class=object_collective ref=KempnerInstitute/KempnerForge#49
"""Ranks ask the file system whether there is a checkpoint, and one asks too early.

Today: broadcast_object_list deadlocks, or unpickles a gradient.
Wanted: rank 2 starts to train and is in all_reduce; ranks 0, 1 are in broadcast_object_list.
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
exists = not (FAULTY and rank == 2)
if exists:
    plan: list[object] = [{"step": 7}] if rank == 0 else [None]
    dist.broadcast_object_list(plan, src=0)  # A
    assert plan == [{"step": 7}]
gradient = torch.ones(32)
dist.all_reduce(gradient)  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
