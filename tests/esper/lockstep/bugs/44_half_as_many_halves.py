# META ws=3 guilty=0 opA=all_gather opB=all_gather expect=mismatch
# META class=dtype_mismatch ref=pytorch/pytorch#174844
"""One rank gathers bfloat16, twice as many of them: the bytes fit, so nothing fails.

Today: silent; the others read pairs of short numbers as one long one.
Wanted: rank 0 gathers bfloat16 [8] where ranks 1, 2 gather float32 [4].
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
short = FAULTY and rank == 0
part = torch.ones(8 if short else 4, dtype=torch.bfloat16 if short else torch.float32)
whole = torch.empty(world * len(part), dtype=part.dtype)
dist.all_gather_into_tensor(whole, part)  # A B
dist.barrier()
assert whole.float().sum().item() == 12.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
