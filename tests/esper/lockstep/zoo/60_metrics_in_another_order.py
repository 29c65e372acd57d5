"""A metric's collective in the default group comes before the training step on one rank and after it on the
other, asynchronously; the training has a group of its own, so both orders are right.
"""
# ranks: 2, patience: 20, quick

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
training = dist.new_group([0, 1])


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1), process_group=training)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = []
    for step in range(6):
        metric, work = torch.tensor([float(step)]), None
        if rank == 0:
            work = dist.all_reduce(metric, async_op=True)
        optimizer.zero_grad()
        model(torch.full((2, 4), float(rank))).sum().backward()
        optimizer.step()
        if rank == 1:
            dist.all_reduce(metric)
        if work is not None:
            work.wait()
        metrics.append(metric.item())
    assert metrics == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
