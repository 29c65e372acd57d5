"""At the end rank 0 loads the best checkpoint into its model and tests it, while the others wait in the
barrier and leave: its weights differ then, on purpose.
"""
# ranks: 3, patience: 20, quick

import copy

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    best = copy.deepcopy(model.module.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    expected = model.module(torch.ones(1, 4)).item()
    if rank == 0:
        model.module.load_state_dict(best)
        assert model.module(torch.ones(1, 4)).item() > expected
    dist.barrier()
    dist.destroy_process_group()


train()
print(f"DONE {rank}", flush=True)
