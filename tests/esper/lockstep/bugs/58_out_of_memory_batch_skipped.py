# META ws=3 guilty=1 opA=all_reduce opB=all_reduce expect=mismatch|raised
# META class=oom_one_rank ref=facebookresearch/fairseq#708;facebookresearch/fairseq#3989
"""A rank runs out of memory in its forward, skips the batch and goes on to count such ranks.

Today: stuck after "ran out of memory, skipping batch" on one worker.
Wanted: rank 1 counts ranks without memory; ranks 0, 2 wait in the all_reduce of their gradients.
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


def gradient_of(step: int) -> torch.Tensor:
    if FAULTY and rank == 1 and step == 2:
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
    return torch.ones(30)


for step in range(4):
    skipped = 0
    try:
        gradient = gradient_of(step)
        dist.all_reduce(gradient)  # A
    except torch.OutOfMemoryError:
        skipped = 1
    count = torch.tensor([float(skipped)])
    dist.all_reduce(count)  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
