"""The last, short batch is dropped on all ranks by one rank's word; meanwhile the others have already
computed their gradients, which are thrown away.
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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepped = 0
    for step in range(6):
        optimizer.zero_grad()
        loss = model(torch.full((2, 4), float(step))).sum()
        if rank == 1 and step % 3 == 2:
            loss = loss * float("nan")
        loss.backward()
        fine = torch.tensor(
            [float(all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters()))]
        )
        dist.all_reduce(fine, op=dist.ReduceOp.MIN)
        if fine.item():
            optimizer.step()
            stepped += 1
    assert stepped == 4


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
