"""DDP over a compiled model: graph breaks where the reducer's buckets end, and one rank has to compile anew
for a shape of its own while the other waits in the backward.
"""
# ranks: 2, patience: 60

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    wrapped = DistributedDataParallel(network)
    wrapped.compile(backend="eager")
    for step in range(4):
        rows = 2 + rank * (step % 2)
        wrapped(torch.ones(rows, 4)).sum().backward()
    bias = network[2].bias
    assert isinstance(bias, torch.nn.Parameter)
    assert bias.grad is not None
    assert bias.grad.tolist() == [2.0 + 2.5 + 2.0 + 2.5]


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
