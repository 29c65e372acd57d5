# META ws=3 guilty=2 opA=all_reduce opB=all_reduce expect=mismatch
# META class=uneven_inputs ref=pytorch/pytorch#38174;pytorch/pytorch#33148
"""`Join` shadows the gradients, but not the metric that the loop reduces by hand.

Today: a size error in gloo, or a metric added to the count of ranks that have joined.
Wanted: rank 2 has used up its inputs and shadows in Join; ranks 0, 1 reduce a metric of two elements.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    with Join([model]):  # B
        for _ in range(2 if FAULTY and rank == 2 else 4):
            model.zero_grad()
            loss = model(torch.ones(2, 4)).sum()
            loss.backward()
            metric = torch.stack([loss.detach(), torch.tensor(1.0)])
            dist.all_reduce(metric)  # A


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
