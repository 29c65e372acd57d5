# META ws=3 guilty=1 opA=all_reduce opB=all_gather expect=mismatch
# META class=exception_one_rank ref=Lightning-AI/pytorch-lightning#11841
"""An IndexError in an augmentation is swallowed, and with it the batch.

Today: training freezes at some batch, without any error.
Wanted: rank 1 has done a step less and gathers the epoch's results; ranks 0, 2 wait in the last all_reduce.
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


def augment(sample: list[float], at: int) -> float:
    return sample[at]


weight = torch.zeros(7)
for step in range(6):
    try:
        value = augment([1.0, 2.0, 3.0], 4 if FAULTY and rank == 1 and step == 3 else step % 3)
        gradient = torch.full((7,), value)
        dist.all_reduce(gradient)  # A
        weight += gradient
    except IndexError:
        continue
results = [torch.zeros(1) for _ in range(world)]
dist.all_gather(results, weight[:1])  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
