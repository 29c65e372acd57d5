# META ws=3 guilty=1 opA=none opB=none expect=drift
# META class=silent_state_drift name=weight ref=pytorch/pytorch#64629
"""One rank steps before its asynchronous all_reduce has come back.

Today: silent; a race that is lost now and then.
Wanted: weight differs between ranks 0, 2 and rank 1.
"""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from esper import lockstep

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
weight = torch.zeros(4)
lockstep.watch("weight", lambda: weight)
for step in range(3):
    gradient = torch.full((4,), float(rank + 1))
    if rank == 0:
        time.sleep(0.2)
    work = dist.all_reduce(gradient, async_op=True)
    assert work is not None
    if not (FAULTY and rank == 1 and step == 1):
        work.wait()
    weight = weight + gradient
    work.wait()
    dist.barrier()  # A B
assert weight[0].item() == 18.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
