"""Rank 0 evaluates with averaged weights in place of the trained ones and puts these back only after the
barrier in which the others wait for it.
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
    average = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        for mean, parameter in zip(average, kept, strict=True):
            mean.lerp_(parameter, 0.5)
        if rank == 0:
            for parameter, mean in zip(model.parameters(), average, strict=True):
                parameter.data.copy_(mean)
            assert model.module(torch.ones(1, 4)).isfinite()
        dist.barrier()
        if rank == 0:
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.data.copy_(value)
    bias = model.module.bias.detach()
    assert torch.allclose(bias, average[1] + (bias - average[1]))
    gathered = [torch.empty_like(bias) for _ in range(world)]
    dist.all_gather(gathered, bias)
    assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
