# Two ranks take the two groups in opposite order: either may be wrong.
# META ws=4 guilty=1,2|1|2 opA=all_reduce opB=all_reduce expect=wait_cycle|order
# META class=cross_pg_order ref=meta-pytorch/torchrec#4149
"""Two groups overlap in two ranks, which use them in opposite order.

Today: four ranks hang in two groups, and each message speaks of one.
Wanted: rank 1 waits in the second group for rank 2, which waits in the first for rank 1.
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
low = dist.new_group([0, 1, 2], timeout=TIMEOUT)
high = dist.new_group([1, 2, 3], timeout=TIMEOUT)
order = {0: [low], 1: [low, high], 2: [low, high], 3: [high]}[rank]
if FAULTY and rank == 1:
    order.reverse()
value = torch.ones(2)
for group in order:
    dist.all_reduce(value, group=group)  # A B
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
