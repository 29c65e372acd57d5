# META ws=3 guilty=0 opA=barrier opB=gather expect=mismatch
# META class=rank_conditional ref=huggingface/accelerate#2785
"""Predictions are gathered inside `if is_main_process`.

Today: a hang in the gather, or a size error elsewhere.
Wanted: rank 0 is in gather; ranks 1, 2 never call it and wait in the barrier that follows.
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
predictions = torch.full((3,), float(rank))
parts = [torch.zeros(3) for _ in range(world)] if rank == 0 else None
if rank == 0 or not FAULTY:
    dist.gather(predictions, parts, dst=0)  # B
dist.barrier()  # A
assert parts is None or torch.cat(parts).sum().item() == 9.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
