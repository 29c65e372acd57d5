# META ws=3 guilty=2 opA=monitored_barrier opB=none expect=frozen|stalled|missing
# META class=tool_false_alarm ref=pytorch/pytorch#83289
"""A monitored barrier has a time-out of its own, shorter than anybody's patience.

Today: rank 0 blames rank 2, rank 1 blames rank 0.
Wanted: rank 2 sleeps in load; ranks 0, 1 gave the barrier up after a second.
"""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def load() -> None:
    if FAULTY and rank == 2:
        time.sleep(20)  # B


load()
dist.monitored_barrier(timeout=timedelta(seconds=1 if FAULTY else 60))  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
