"""Gradient hooks reduce in another group while the reducer's own collectives are in flight, and one rank's
hook takes its time.
"""
# ranks: 2, patience: 20

import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
norms = dist.new_group([0, 1])
seen: list[float] = []


def norm_over_ranks(gradient: torch.Tensor) -> None:
    if rank == 1:
        time.sleep(0.15)
    square = gradient.norm() ** 2
    dist.all_reduce(square, group=norms)
    seen.append(square.item())


def train() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64) for _ in range(3)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=0.01)
    for layer in layers:
        layer.weight.register_hook(norm_over_ranks)  # type: ignore[no-untyped-call]
    for _ in range(3):
        model.zero_grad()
        model(torch.full((2, 64), float(rank + 1))).sum().backward()
    everyone = torch.tensor(seen)
    dist.all_reduce(everyone, op=dist.ReduceOp.MAX)
    assert everyone.tolist() == seen
    assert len(seen) == 9


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
