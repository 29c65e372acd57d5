"""One rank saves memory by activation checkpointing, so its model's parameters have other names: same order,
same shapes, same training.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)]
    if rank == 1:
        layers[0] = checkpoint_wrapper(layers[0])
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(rank))).sum().backward()
        optimizer.step()
    for parameter in model.parameters():
        gathered = [torch.empty_like(parameter) for _ in range(world)]
        dist.all_gather(gathered, parameter.detach())
        assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
