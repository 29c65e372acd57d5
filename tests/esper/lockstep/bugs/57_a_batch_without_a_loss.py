# META ws=3 guilty=1 opA=all_reduce opB=all_reduce expect=mismatch|order
# META class=nan_skip ref=Lightning-AI/pytorch-lightning#5243;NVIDIA-NeMo/Automodel#2468
"""One rank has no loss for its batch and skips the backward: its later gradients are paired a step off.

Today: a freeze at the end, or a silent desynchronisation.
Wanted: rank 1 reduces the gradients of step 3 where ranks 0, 2 reduce those of step 2.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from esper import lockstep

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    for step in range(5):
        with lockstep.tag(f"step {step}"):
            loss = None if FAULTY and rank == 1 and step == 2 else model(torch.ones(1, 4)).sum()
            if loss is None:
                continue
            loss.backward()  # A B


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
