# META ws=3 guilty=1 opA=init_process_group|barrier|none opB=init_process_group|barrier|none
# META expect=group|mismatch|missing|frozen|stalled class=subgroup_misuse ref=pytorch/pytorch#129672
"""One rank was started with another world size.

Today: ranks hang in init_process_group, or in the first collective.
Wanted: rank 1 joins a world of 2, ranks 0, 2 one of 3.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
if FAULTY and rank == 1:
    world = 2
dist.init_process_group("gloo", rank=rank, world_size=world, timeout=TIMEOUT)  # A B
dist.barrier()  # A B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
