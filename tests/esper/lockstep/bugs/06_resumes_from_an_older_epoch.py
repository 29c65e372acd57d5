# META ws=3 guilty=2 opA=barrier opB=all_reduce expect=mismatch
# META class=rank_conditional ref=huggingface/accelerate#2785
"""One host has a stale copy of the checkpoint, so its rank trains an epoch more than the others.

Today: the last epoch's gradients meet a barrier; gloo waits or resets.
Wanted: rank 2 is in the all_reduce of epoch 4; ranks 0, 1 are in the final barrier.
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
resumed = 1 if FAULTY and rank == 2 else 2
weight = torch.zeros(5)
for _ in range(resumed, 5):
    gradient = torch.ones(5)
    dist.all_reduce(gradient)  # B
    weight += gradient
dist.barrier()  # A
assert weight[0].item() == 9.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
