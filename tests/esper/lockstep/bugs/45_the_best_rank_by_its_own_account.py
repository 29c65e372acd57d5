# META ws=4 guilty=2 opA=broadcast opB=broadcast expect=mismatch
# META class=root_mismatch ref=Lightning-AI/pytorch-lightning#19045
"""The best replica sends its weights; who is best, each rank works out from what it knows.

Today: two ranks send, and some wait for ever or take the wrong weights.
Wanted: rank 2 broadcasts from rank 2 where ranks 0, 1, 3 broadcast from rank 0.
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
losses = [0.1, 0.2, 0.3, 0.4]
if FAULTY and rank == 2:
    losses[2] = 0.0
weights = torch.full((6,), float(rank))
dist.broadcast(weights, src=losses.index(min(losses)))  # A B
dist.barrier()
assert weights[0].item() == 0.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
