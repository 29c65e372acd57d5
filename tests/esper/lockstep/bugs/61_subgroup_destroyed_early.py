# META ws=4 guilty=1 opA=all_reduce opB=destroy_process_group|barrier expect=missing|wait_cycle
# META class=destroy_hang ref=pytorch/pytorch#75097;pytorch/pytorch#190396
"""A rank destroys a subgroup while its members still use it, and goes to the barrier of all.

Today: a reset connection in the subgroup, or a hang of all.
Wanted: rank 1 destroyed the group, and waits in the barrier; ranks 0, 2 wait in the subgroup's all_reduce.
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
trio = dist.new_group([0, 1, 2], timeout=TIMEOUT)
if rank < 3:
    for _ in range(2 if FAULTY and rank == 1 else 3):
        value = torch.ones(3)
        dist.all_reduce(value, group=trio)  # A
    dist.destroy_process_group(trio)  # B
dist.barrier()  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
