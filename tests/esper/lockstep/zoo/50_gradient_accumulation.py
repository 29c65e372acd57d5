"""Accumulation: several backwards without exchange, then one with it, and as many forwards on each rank as it
likes in between.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        with model.no_sync():
            for _ in range(1 + rank):
                model(torch.ones(2, 4)).sum().backward()
        model(torch.ones(2, 4)).sum().backward()
        gradient = model.module.bias.grad
        assert gradient is not None
        assert gradient.item() == 5.0
        optimizer.step()
        model.module.eval()
        with torch.no_grad():
            for _ in range(rank):
                model.module(torch.ones(2, 4))
        model.module.train()


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
