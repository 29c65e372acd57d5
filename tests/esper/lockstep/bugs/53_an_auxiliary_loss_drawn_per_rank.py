# META ws=3 guilty=0 opA=all_reduce opB=all_reduce expect=mismatch
# META class=rng_divergence ref=huggingface/transformers#11452
"""A rank's own generator decides whether an auxiliary loss is reduced.

Today: a size error or a freeze, some hundred steps after the start.
Wanted: rank 0 reduces the auxiliary loss; ranks 1, 2 are in the gradients' all_reduce.
"""

import os
import random
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def auxiliary() -> None:
    loss = torch.tensor(1.0)
    dist.all_reduce(loss)  # B


draw = random.Random(3 if FAULTY and rank == 0 else 0)
for _ in range(6):
    if draw.random() < 0.25:
        auxiliary()
    gradient = torch.ones(20)
    dist.all_reduce(gradient)  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
