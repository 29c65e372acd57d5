# Which of the later gathers contradicts first depends on how torch prefetches: any of the model's lines.
# META ws=3 guilty=1 opA=all_gather|reduce_scatter|barrier opB=all_gather|reduce_scatter|barrier
# META expect=mismatch|order|missing|wait_cycle class=rng_divergence ref=facebookresearch/fairseq#3875
"""Layer drop draws from an unsynchronised generator, so one rank does not gather a layer's parameters.

Today: a hang, or a layer's parameters in another layer's place.
Wanted: rank 1 has gone on to the next layer; ranks 0, 2 wait in all_gather of the one that it dropped.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size + 2) for size in (2, 4, 6))
        self.small = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor, dropped: int) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = self.small(x) if index == dropped else layer(x)  # A B
        return x


def train() -> None:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (world,))
    model = Encoder()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    generator = torch.Generator().manual_seed(rank if FAULTY else 0)
    for _ in range(3):
        drawn = torch.rand(1, generator=generator).item()
        model(torch.ones(2, 2), 1 if drawn < 0.3 else -1).sum().backward()  # A B


train()
dist.barrier()  # A B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
