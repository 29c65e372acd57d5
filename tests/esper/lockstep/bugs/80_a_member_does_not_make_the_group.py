# META ws=4 guilty=1 opA=new_group opB=barrier expect=group|missing|wait_cycle|mismatch
# META class=new_group_subset ref=pytorch/pytorch#134314
"""A group of three is made lazily, where it is first needed, and one member never comes there.

Today: new_group got stuck.
Wanted: rank 1 is in the barrier; ranks 0, 2, 3 wait for it in new_group([0, 1, 2]).
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


def group_of_three() -> None:
    dist.new_group([0, 1, 2], timeout=TIMEOUT)  # A


if not (FAULTY and rank == 1):
    group_of_three()
dist.barrier()  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
