# META ws=3 guilty=1 opA=all_reduce opB=all_reduce expect=mismatch
# META class=dtype_mismatch ref=Lightning-AI/pytorch-lightning#19680
"""A metric comes from Python on one rank and from numpy, in double precision, on the other.

Today: a size error, or a sum of half a number.
Wanted: rank 1 reduces float64 where ranks 0, 2 reduce float32, same line.
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
metric = torch.tensor([0.5], dtype=torch.float64 if FAULTY and rank == 1 else torch.float32)
dist.all_reduce(metric)  # A B
assert metric.item() == 1.5
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
