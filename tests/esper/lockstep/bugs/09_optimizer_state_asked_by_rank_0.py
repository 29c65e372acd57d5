# META ws=3 guilty=0 opA=all_reduce opB=broadcast|recv|all_gather|gather|send expect=mismatch|wait_cycle
# META class=rank0_only_barrier ref=deepspeedai/DeepSpeed#797;Lightning-AI/pytorch-lightning#19045
"""`consolidate_state_dict` talks to every rank, and only rank 0 calls it, since only rank 0 saves.

Today: a hang in the middle of a save.
Wanted: rank 0 is in consolidate_state_dict; ranks 1, 2 wait in the next step's all_reduce.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
layer = nn.Linear(4, 4)
optimizer = ZeroRedundancyOptimizer(layer.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
for step in range(3):
    optimizer.zero_grad()
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None
    dist.all_reduce(layer.weight.grad)  # A
    optimizer.step()
    if step == 1 and (rank == 0 or not FAULTY):
        optimizer.consolidate_state_dict(to=0)  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
