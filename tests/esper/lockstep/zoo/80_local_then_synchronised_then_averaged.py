"""Local steps, then steps with averaged gradients, then averaged parameters: in between replicas differ on
purpose.
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

    def step() -> None:
        optimizer.zero_grad()
        model(torch.full((2, 4), float(rank))).sum().backward()
        optimizer.step()

    for _ in range(2):
        with model.no_sync():
            step()
            step()
        step()
        step()
        with torch.no_grad():
            for parameter in model.parameters():
                dist.all_reduce(parameter)
                parameter.div_(world)
    bias = model.module.bias.detach()
    gathered = [torch.empty_like(bias) for _ in range(world)]
    dist.all_gather(gathered, bias)
    assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
