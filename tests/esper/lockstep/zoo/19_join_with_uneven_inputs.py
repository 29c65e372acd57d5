"""`Join`: the rank whose inputs are used up shadows the others' collectives from inside the context manager,
so its calls have other lines and other shapes than theirs.
"""
# ranks: 3, patience: 20

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    steps = 0
    with Join([model]):
        for _ in range(3 + 4 * rank):
            model.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            steps += 1
    assert steps == 3 + 4 * rank


train()
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
