"""`find_unused_parameters` with branches that each rank takes by its own data: the parameters in use differ
from rank to rank and step to step.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


class Branches(torch.nn.Module):
    """Two layers, of which a forward uses one or both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, which: int) -> torch.Tensor:
        both: tuple[torch.Tensor, torch.Tensor] = self.left(x), self.right(x)
        return both[0] + both[1] if which == 2 else both[which]


def train() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        model(torch.ones(2, 4), (step + rank) % 3).sum().backward()
        optimizer.step()
    for parameter in model.parameters():
        gathered = [torch.empty_like(parameter) for _ in range(world)]
        dist.all_gather(gathered, parameter.detach())
        assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
