"""SyncBatchNorm by hand: an autograd function that reduces in its forward and in its backward, inside a DDP
model, so the user's collectives are mixed with the reducer's.
"""
# ranks: 2, patience: 20

import time

import torch
import torch.distributed as dist
from torch.autograd.function import FunctionCtx
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
statistics = dist.new_group([0, 1])


class MeanOverRanks(torch.autograd.Function):
    """The mean of all ranks' inputs; its gradient is the mean of all ranks' gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(0)
        dist.all_reduce(mean, group=statistics)
        return mean / world

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        if rank == 1:
            time.sleep(0.1)
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=statistics)
        return (gradient / world / 4).expand(4, -1)


class Centred(torch.nn.Module):
    """Two layers with the mean over all ranks taken off in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        result: torch.Tensor = self.second(x - MeanOverRanks.apply(x))  # type: ignore[no-untyped-call]
        return result


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(Centred(), bucket_cap_mb=1)
    for _ in range(4):
        model.zero_grad()
        model(torch.full((4, 4), float(rank))).sum().backward()
    gradient = model.module.second.bias.grad
    assert gradient is not None
    assert gradient.tolist() == [4.0]


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
