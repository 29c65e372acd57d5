# META ws=3 guilty=1 opA=none opB=none expect=model|drift|order|mismatch
# META class=param_order name=cos|sin ref=huggingface/transformers#48162
"""Buffers are registered in the order of a set, which differs per process; DDP pairs them by position.

Today: silent; rank 1 works with sines for cosines, and prints garbage.
Wanted: rank 1 registers sin before cos; buffer 0 is cos on ranks 0, 2.
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


class Rotary(nn.Module):
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        for name in ["sin", "cos"] if FAULTY and rank == 1 else ["cos", "sin"]:
            self.register_buffer(name, torch.full((4,), 1.0 if name == "cos" else 0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rotated: torch.Tensor = self.layer(x * self.cos + self.sin)
        return rotated


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(Rotary())  # A B
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward()  # A B
    assert model.module.cos[0].item() == 1.0


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
