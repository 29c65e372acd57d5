"""Each half of the ranks trains a model of its own: names, shapes and counts differ between the halves, and
between the groups of one sequence number.
"""
# ranks: 4, patience: 20

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
mine = halves[rank // 2]
torch.manual_seed(rank // 2)


def train() -> None:
    network = (
        torch.nn.Linear(3, 1)
        if rank < 2
        else torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 1))
    )
    width = 3 if rank < 2 else 5
    model = DistributedDataParallel(network, process_group=mine)
    for _ in range(3 if rank < 2 else 9):
        model.zero_grad()
        model(torch.full((2, width), float(rank))).sum().backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    if rank < 2:
        assert gradient.tolist() == [[1.0, 1.0, 1.0]]


train()
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
