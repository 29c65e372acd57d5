# META ws=3 guilty=2 opA=none opB=none expect=drift
# META class=silent_state_drift name=weight|bias ref=seed001
"""A learning-rate scheduler steps once more on one rank: equal gradients, unequal steps.

Today: silent; the replicas part.
Wanted: weight differs between ranks 0, 1 and rank 2 from step 3 on.
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
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).sum().backward()  # A B
        optimizer.step()
        scheduler.step()
        if FAULTY and rank == 2 and step == 1:
            scheduler.step()
            scheduler.step()


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
