# META ws=3 guilty=1 opA=all_gather opB=all_reduce expect=mismatch
# META class=rank_conditional ref=facebookresearch/optimizers#149
"""The sharded optimiser returns early on a rank whose parameters have no gradient.

Today: a hang in all_gather_into_tensor on the ranks that have one.
Wanted: rank 1 is in the next step's all_reduce; ranks 0, 2 wait in all_gather of the optimiser's step.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def step_optimizer(gradient: torch.Tensor | None) -> None:
    if gradient is None:
        return
    dist.all_gather_into_tensor(torch.empty(4 * world), gradient)  # A


for step in range(4):
    norm = torch.ones(2)
    dist.all_reduce(norm)  # B
    step_optimizer(None if FAULTY and rank == 1 and step == 2 else torch.ones(4))
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
