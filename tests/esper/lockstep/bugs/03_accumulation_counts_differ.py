# META ws=3 guilty=1 opA=all_reduce opB=barrier expect=mismatch|missing
# META class=uneven_inputs ref=microsoft/PyMarlin#80
"""Gradients are accumulated over four batches, and one rank has seven of eight: the rest is never reduced.

Today: a hang in the eighth backward.
Wanted: rank 1 is in the barrier after the epoch; ranks 0, 2 wait in the all_reduce of backward.
"""

import contextlib
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 3))
    for batch in range(7 if FAULTY and rank == 1 else 8):
        with contextlib.nullcontext() if batch % 4 == 3 else model.no_sync():
            model(torch.ones(1, 3)).sum().backward()  # A


train()
dist.barrier()  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
