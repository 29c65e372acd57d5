"""A part that was added after the wrapper was built is in no reducer: its gradients are averaged by hand."""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(4, 4))
    model = DistributedDataParallel(body)
    added = torch.nn.Linear(4, 1)
    body.append(added)
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(rank))).sum().backward()
        for parameter in added.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(world)
        optimizer.step()
    for parameter in body.parameters():
        gathered = [torch.empty_like(parameter) for _ in range(world)]
        dist.all_gather(gathered, parameter.detach())
        assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
