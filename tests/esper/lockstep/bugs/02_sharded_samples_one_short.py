# META ws=3 guilty=2 opA=all_reduce opB=all_gather expect=mismatch
# META class=uneven_inputs ref=Lightning-AI/pytorch-lightning#20404;microsoft/PyMarlin#80
"""Eleven samples are dealt to three ranks, and gradients are averaged by hand.

Today: a size error or a hang at the end of the epoch.
Wanted: rank 2 gathers its losses after the loop; ranks 0, 1 wait in the all_reduce of a fourth sample.
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
samples = [float(n) for n in range(11 if FAULTY else 12)]
weight, losses = torch.zeros(6), []
for sample in samples[rank::world]:
    gradient = torch.full((6,), sample)
    dist.all_reduce(gradient)  # A
    weight -= gradient / world
    losses.append(sample)
everyone: list[list[float] | None] = [None] * world
dist.all_gather_object(everyone, losses)  # B
assert weight[0].item() == -sum(samples) / 3
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
