# META ws=3 guilty=2 opA=all_reduce opB=barrier expect=mismatch|missing
# META class=unused_params ref=pytorch/pytorch#23425;Lightning-AI/pytorch-lightning#12190
"""A batch without targets yields a constant for a loss, whose backward touches no parameter.

Today: a hang without a message.
Wanted: rank 2 is past its backward, in the barrier; ranks 0, 1 wait in the reducer's all_reduce.
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
    model = DistributedDataParallel(nn.Linear(4, 1))
    for step in range(3):
        loss = model(torch.ones(2, 4)).sum()
        if FAULTY and rank == 2 and step == 2:
            loss = torch.zeros((), requires_grad=True)
        loss.backward()  # A


train()
dist.barrier()  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
