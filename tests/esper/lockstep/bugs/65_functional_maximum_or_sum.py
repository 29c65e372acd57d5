# META ws=3 guilty=1 opA=all_reduce opB=all_reduce expect=mismatch
# META class=reduce_op_mismatch ref=pytorch/pytorch#79901
"""A functional collective takes its reduction from a flag that differs.

Today: silent; a norm that is neither the sum nor the maximum.
Wanted: rank 1 takes MAX where ranks 0, 2 take SUM, same line.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
norm = torch.full((4,), float(rank + 1))
how = "max" if FAULTY and rank == 1 else "sum"
result = funcol.all_reduce(norm, how, list(range(world)))  # A B
assert result[0].item() == 6.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
