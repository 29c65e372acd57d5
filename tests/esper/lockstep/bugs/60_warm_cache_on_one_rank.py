# META ws=3 guilty=2 opA=all_gather opB=all_reduce expect=mismatch
# META class=compile_divergence ref=pytorch/pytorch#193043;karpathy/nanochat#722
"""Ranks agree on a compiled artefact by a collective, but only those whose cache misses.

Today: a hang of the ranks that miss.
Wanted: rank 2 hit its cache and is in all_reduce; ranks 0, 1 are in all_gather_object of compile_step.
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
cache: dict[str, int] = {"step": 1} if FAULTY and rank == 2 else {}


def compile_step(name: str) -> int:
    if name not in cache:
        keys: list[object] = [None] * world
        dist.all_gather_object(keys, name)  # A
        cache[name] = len(set(map(str, keys)))
    return cache[name]


assert compile_step("step") == 1
gradient = torch.ones(100)
dist.all_reduce(gradient)  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
