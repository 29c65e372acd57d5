"""ZeRO: each rank steps its own shard and then broadcasts it, so after the inner step parameters differ
between ranks for a moment.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(rank + step))).sum().backward()
        optimizer.step()
    optimizer.consolidate_state_dict(to=0)
    for parameter in model.parameters():
        gathered = [torch.empty_like(parameter) for _ in range(world)]
        dist.all_gather(gathered, parameter.detach())
        assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
