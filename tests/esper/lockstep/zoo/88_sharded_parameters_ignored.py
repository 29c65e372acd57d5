"""Each rank keeps a shard of its own size, which DDP is told to ignore: the models differ in shapes and
values, and what DDP averages does not.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


class Sharded(torch.nn.Module):
    """A table whose rows are spread over the ranks, unevenly, before a layer that all have."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(3 + 2 * rank, 4)
        self.head = torch.nn.Linear(4, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.table(rows))
        return result


def train() -> None:
    torch.manual_seed(rank)
    network = Sharded()
    ignored = ["table.weight"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, ignored)  # type: ignore[no-untyped-call]
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.tensor([step % 3, step % (3 + 2 * rank)])).sum().backward()
        optimizer.step()
    bias = network.head.bias.detach()
    gathered = [torch.empty_like(bias) for _ in range(world)]
    dist.all_gather(gathered, bias)
    assert torch.equal(gathered[0], gathered[1])


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
