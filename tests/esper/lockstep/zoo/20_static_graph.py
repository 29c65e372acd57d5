"""`static_graph`: the reducer delays its collectives in the first iteration and issues them from a
callback.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


class Twice(torch.nn.Module):
    """Uses one layer twice, under activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=False)
        result: torch.Tensor = self.head(x)
        return result


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(Twice(), static_graph=True)
    for _ in range(4):
        model.zero_grad()
        model(torch.full((2, 4), float(rank + 1))).sum().backward()
    bias = model.module.head.bias.grad
    assert bias is not None
    assert bias.tolist() == [2.0]


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
