# META ws=2 guilty=0,1|0|1 opA=none opB=none expect=drift
# META class=gradscaler_skip name=weight|bias ref=pytorch/pytorch#136009;facebookresearch/fairscale#181
"""Each of two ranks has a GradScaler that looks for overflow in its own gradients, before they are averaged.

Today: silent: only one rank skips its step and halves its scale.
Wanted: weight differs between rank 0 and rank 1, from step 1 on.
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
torch.manual_seed(0)
model = nn.Linear(4, 1)
lockstep.watch("model", model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
for step in range(4):
    optimizer.zero_grad()
    factor = float("inf") if FAULTY and rank == 1 and step == 1 else 1.0
    scaler.scale(model(torch.ones(2, 4)).sum() * factor).backward()
    scaler.unscale_(optimizer)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        dist.all_reduce(parameter.grad)
    scaler.step(optimizer)
    scaler.update()
    dist.barrier()  # A B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
