# META ws=3 guilty=0 opA=barrier opB=broadcast expect=mismatch
# META class=rank0_only_barrier ref=pytorch/pytorch#48988;Lightning-AI/pytorch-lightning#19045
"""Rank 0 validates with the wrapped model, whose forward broadcasts buffers even in eval mode.

Today: the validation hangs, or takes part in the next barrier.
Wanted: rank 0 is in the broadcast of forward; ranks 1, 2 are in the barrier after the validation.
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
    model = DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    model(torch.rand(4, 3)).sum().backward()
    model.eval()
    if rank == 0:
        with torch.no_grad():
            (model if FAULTY else model.module)(torch.rand(2, 3))  # B
    dist.barrier()  # A


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
