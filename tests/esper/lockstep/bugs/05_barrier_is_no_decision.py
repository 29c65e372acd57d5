# META ws=3 guilty=1 opA=barrier opB=all_reduce expect=mismatch
# META class=early_stopping ref=talmolab/sleap-nn#471
"""A stop command reaches the ranks at different steps: the barrier aligns them, but not what they know.

Today: 30 s until the backend gives up, in a barrier.
Wanted: rank 1 stopped and reduces its final score; ranks 0, 2 wait in the barrier of the next step.
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
for step in range(6):
    dist.barrier()  # A
    told = step >= (2 if FAULTY and rank == 1 else 4)
    if told:
        break
score = torch.tensor([float(rank)])
dist.all_reduce(score)  # B
assert score.item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
