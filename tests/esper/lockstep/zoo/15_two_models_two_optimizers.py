"""GAN-like: two DDP models with a group's collectives in turn, and one model's gradients are made by the
other's loss.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    torch.manual_seed(rank)
    generator = DistributedDataParallel(nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    critic = DistributedDataParallel(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)))
    of_generator = torch.optim.SGD(generator.parameters(), lr=0.01)
    of_critic = torch.optim.SGD(critic.parameters(), lr=0.01)
    for _ in range(4):
        noise, real = torch.randn(8, 2), torch.randn(8, 2)
        of_critic.zero_grad()
        fake = generator(noise).detach()
        (critic(torch.cat([fake, real])) * torch.tensor([[1.0]] * 8 + [[-1.0]] * 8)).mean().backward()
        of_critic.step()
        critic.requires_grad_(False)
        of_generator.zero_grad()
        (-critic.module(generator(noise))).mean().backward()
        of_generator.step()
        critic.requires_grad_(True)
    for parameter in (*generator.parameters(), *critic.parameters()):
        gathered = [torch.empty_like(parameter) for _ in range(world)]
        dist.all_gather(gathered, parameter.detach())
        assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
