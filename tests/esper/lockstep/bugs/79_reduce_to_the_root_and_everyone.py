# META ws=4 guilty=1 opA=all_reduce opB=reduce expect=mismatch
# META class=op_order ref=pytorch/pytorch#137256;pytorch/pytorch#72843
"""One rank thinks that only the root needs the sum.

Today: the ranks read each other's parts, or hang.
Wanted: rank 1 is in reduce where ranks 0, 2, 3 are in all_reduce.
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
value = torch.ones(10)
if FAULTY and rank == 1:
    dist.reduce(value, dst=0)  # B
else:
    dist.all_reduce(value)  # A
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
