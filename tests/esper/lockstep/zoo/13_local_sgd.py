"""Local SGD: for k steps no gradient is exchanged, while one rank is slow, then parameters are averaged."""
# ranks: 2, patience: 20

import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(3):
    with model.no_sync():
        for step in range(4):
            if rank == 1:
                time.sleep(0.05)
            optimizer.zero_grad()
            model(torch.full((2, 4), float(rank + step))).sum().backward()
            optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            dist.all_reduce(parameter)
            parameter.div_(world)
weight = next(model.parameters()).detach()
gathered = [torch.empty_like(weight) for _ in range(world)]
dist.all_gather(gathered, weight)
assert torch.equal(gathered[0], gathered[1])
del model, optimizer
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
