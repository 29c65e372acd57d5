# META ws=3 guilty=1 opA=gather opB=gather expect=mismatch
# META class=object_collective ref=pytorch/torchtitan#3051
"""gather_object goes to the coordinator, and one rank takes another for it.

Today: an EOFError in unpickle, or a hang.
Wanted: rank 1 gathers to rank 1 where ranks 0, 2 gather to rank 0, same line.
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
coordinator = 1 if FAULTY and rank == 1 else 0
plans: list[object] | None = [None] * world if rank == coordinator else None
dist.gather_object({"rank": rank}, plans, dst=coordinator)  # A B
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
