"""FSDP2: parameters are gathered before each layer and freed after it, gradients are scattered from hooks of
the backward, and one rank is slow in the midst of it.
"""
# ranks: 2, patience: 60

import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (world,))
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        if rank == 1:
            time.sleep(0.1)
        optimizer.zero_grad()
        model(torch.full((2, 8), float(rank))).sum().backward()
        optimizer.step()
    bias = model[2].bias
    assert isinstance(bias, DTensor)
    assert torch.allclose(bias.grad.full_tensor(), torch.full((8,), 2.0))  # type: ignore[union-attr]


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
