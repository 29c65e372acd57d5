# Both raise at nearly the same time; the first is enough, a rank that does not raise would be wrong.
# META ws=5 guilty=1,3|1|3 opA=all_reduce opB=none expect=raised
# META class=exception_one_rank ref=ai2cm/ace#850
"""A check of the loss raises on the ranks whose shard held the broken sample, two of five.

Today: the rest hang until the time-out.
Wanted: ranks 1, 3 raised FloatingPointError; ranks 0, 2, 4 wait in all_reduce.
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
for step in range(4):
    loss = torch.tensor(float("nan") if FAULTY and rank in (1, 3) and step == 2 else 1.0)
    if not loss.isfinite():
        raise FloatingPointError(f"loss is {loss.item()} in step {step}")  # B
    dist.all_reduce(loss)  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
