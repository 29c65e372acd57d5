# META ws=3 guilty=0 opA=barrier opB=all_reduce expect=mismatch
# META class=syncbn ref=pytorch/pytorch#48988;pytorch/pytorch#44957
"""A synchronised norm is still in training mode when rank 0 validates alone.

Today: the validation on rank 0 hangs.
Wanted: rank 0 reduces statistics in the norm's forward; ranks 1, 2 are in the barrier after validation.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


class SyncNorm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        total = torch.cat([x.sum(0), torch.tensor([float(len(x))])])
        dist.all_reduce(total)  # B
        return x - total[:-1] / total[-1]


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 3), SyncNorm())
with torch.no_grad():
    for _ in range(2):
        model(torch.ones(2, 3))
    if rank == 0:
        model.train(FAULTY)
        model(torch.ones(4, 3))
dist.barrier()  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
