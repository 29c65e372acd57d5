"""Some ranks freeze a part of the model after construction: which parameters are trainable differs, and the
reducer is told so by `find_unused_parameters`.
"""
# ranks: 2, patience: 20, quick

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)), find_unused_parameters=True
    )
    if rank == 1:
        model.module[0].requires_grad_(False)
    for _ in range(3):
        model.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
    gradient = model.module[1].bias.grad
    assert gradient is not None
    assert gradient.tolist() == [2.0]


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
