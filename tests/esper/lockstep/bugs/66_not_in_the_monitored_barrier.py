# META ws=3 guilty=2 opA=monitored_barrier opB=all_reduce expect=mismatch
# META class=tool_false_alarm ref=pytorch/pytorch#83289
"""A monitored barrier is behind a debug flag that one rank lacks.

Today: x blames 0, 0 blames x.
Wanted: rank 2 is in all_reduce; ranks 0, 1 wait in monitored_barrier.
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
if not (FAULTY and rank == 2):
    dist.monitored_barrier(timeout=TIMEOUT)  # A
value = torch.ones(2)
dist.all_reduce(value)  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
