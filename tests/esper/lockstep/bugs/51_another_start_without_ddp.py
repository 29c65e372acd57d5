# META ws=3 guilty=2 opA=none opB=none expect=drift
# META class=rng_divergence name=weight ref=pytorch/torchtitan#166
"""Gradients are averaged by hand, and one rank starts from other weights since its seed differs.

Today: silent: a worse loss that still goes down.
Wanted: 0.weight differs between ranks 0, 1 and rank 2.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from esper import lockstep

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(1 if FAULTY and rank == 2 else 0)
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
lockstep.watch("model", model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(1, 4)).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
    optimizer.step()
    dist.barrier()  # A B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
