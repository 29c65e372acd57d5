# META ws=3 guilty=0 opA=all_reduce opB=all_gather|broadcast|all_reduce|DistributedDataParallel
# META expect=mismatch|model|missing class=rank_conditional ref=huggingface/accelerate#2785
"""Rank 0 keeps an averaged copy of the model, and wraps it like the model itself.

Today: a hang, in the constructor of the one and the backward of the others.
Wanted: rank 0 builds a second DistributedDataParallel; ranks 1, 2 wait in the all_reduce of backward.
"""

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
    if FAULTY and rank == 0:
        DistributedDataParallel(nn.Linear(3, 3))  # B
    model(torch.ones(1, 3)).sum().backward()  # A


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
