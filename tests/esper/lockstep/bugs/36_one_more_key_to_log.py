# META ws=3 guilty=1 opA=barrier opB=all_reduce expect=mismatch
# META class=op_count_mismatch ref=Lightning-AI/pytorch-lightning#19106
"""Metrics are reduced key by key, and one rank has a key that the others don't have.

Today: a deadlock.
Wanted: rank 1 reduces a third key; ranks 0, 2 have reduced two and are in the barrier.
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
logged = {"loss": 1.0, "accuracy": 0.5}
if FAULTY and rank == 1:
    logged["skipped"] = 1.0
for key in sorted(logged):
    value = torch.tensor(logged[key])
    dist.all_reduce(value)  # B
dist.barrier()  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
