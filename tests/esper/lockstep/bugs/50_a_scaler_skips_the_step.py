# META ws=4 guilty=1 opA=none opB=none expect=drift
# META class=gradscaler_skip name=weight|bias ref=pytorch/pytorch#136009;dylanyunlon/Neuron_SP#2
"""Each rank looks for overflow in its own gradients, before they are averaged, and skips its own step.

Today: silent divergence of the parameters.
Wanted: weight differs between ranks 0, 2, 3 and rank 1, which skipped a step.
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
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.full((2, 4), float(rank + 1))).pow(2).mean()  # A B
        overflow = FAULTY and rank == 1 and step == 1
        loss.backward()
        if not overflow:
            optimizer.step()


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
