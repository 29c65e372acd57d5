# META ws=4 guilty=3 opA=all_to_all opB=all_gather expect=mismatch
# META class=op_order ref=pytorch/pytorch#137256;pytorch/pytorch#72843
"""The dispatch of experts is chosen by a configuration that differs on one rank.

Today: a hang, in which each side's message names its own operation.
Wanted: rank 3 is in all_gather where ranks 0, 1, 2 are in all_to_all.
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
tokens = torch.full((8,), float(rank))
if FAULTY and rank == 3:
    everyones = torch.empty(8 * world)
    dist.all_gather_into_tensor(everyones, tokens)  # B
else:
    mine = torch.empty(8)
    dist.all_to_all_single(mine, tokens)  # A
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
