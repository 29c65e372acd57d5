# META ws=3 guilty=2 opA=all_reduce opB=none expect=raised
# META class=exception_one_rank ref=ai2cm/ace#850
"""A gradient hook finds an infinite gradient on one rank and raises in the middle of backward.

Today: a hang on the others, in their backward.
Wanted: rank 2 raised OverflowError in check; ranks 0, 1 wait in the reducer's all_reduce.
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


def check(gradient: torch.Tensor) -> None:
    if not gradient.isfinite().all():
        raise OverflowError("infinite gradient")  # B


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    model.module.weight.register_hook(check)
    for step in range(4):
        factor = float("inf") if FAULTY and rank == 2 and step == 2 else 1.0
        (model(torch.ones(2, 4)).sum() * factor).backward()  # A


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
