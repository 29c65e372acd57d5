# META ws=2 guilty=0,1|1|0 opA=none opB=none expect=model
# META class=model_structure name=adapter|parameters ref=yifan123/flow_grpo#245
"""One of two ranks loads an adapter, so that its model has parameters which the other's lacks.

Today: torch's own error, on one rank; the other may hang.
Wanted: DistributedDataParallel has 2 parameters on rank 0 and 4 on rank 1.
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
    model = nn.ModuleDict({"body": nn.Linear(4, 4)})
    if FAULTY and rank == 1:
        model["adapter"] = nn.Linear(4, 4)
    DistributedDataParallel(model)  # A B


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
