# META ws=3 guilty=2 opA=all_gather opB=none expect=crashed
# META class=rank_crash ref=horovod/horovod#642
"""A library aborts one rank: an assertion in C++, or a corrupted heap.

Today: the peers lose a connection, and whoever dies of that first is blamed.
Wanted: rank 2 died of SIGABRT in tokenize; ranks 0, 1 wait in all_gather.
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


def tokenize(step: int) -> torch.Tensor:
    if FAULTY and rank == 2 and step == 1:
        os.abort()  # B
    return torch.ones(3)


for step in range(3):
    dist.all_gather([torch.empty(3) for _ in range(world)], tokenize(step))  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
