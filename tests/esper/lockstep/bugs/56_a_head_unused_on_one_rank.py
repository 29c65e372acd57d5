# META ws=3 guilty=1 opA=all_reduce opB=none expect=raised
# META class=unused_params ref=pytorch/pytorch#40566;huggingface/transformers#11452
"""One rank's batch uses only one of two heads, and its next forward finds the reduction unfinished.

Today: an error on one rank and a hang on the others.
Wanted: rank 1 raised RuntimeError in forward; ranks 0, 2 wait in the all_reduce of backward.
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


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        y: torch.Tensor = self.one(x)
        return y + self.two(x) if both else y


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(TwoHeads())
    for step in range(4):
        out = model(torch.ones(1, 2), not (FAULTY and rank == 1 and step == 1))  # B
        out.sum().backward()  # A


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
