# META ws=3 guilty=1 opA=all_reduce opB=none expect=stalled|frozen
# META class=rank_freeze ref=axolotl-ai-cloud/axolotl#2684;pytorch/pytorch#132696
"""Data sets are announced in the store, and one rank waits for a key of another epoch.

Today: "timed out after 1800000ms" in the store, or a time-out on a healthy rank.
Wanted: rank 1 waits in the store in prepare; ranks 0, 2 wait in all_reduce.
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
store = dist.distributed_c10d._get_default_store()


def prepare(epoch: int) -> None:
    if rank == 0:
        store.set(f"dataset-{epoch}", "ready")
    wanted = epoch + 1 if FAULTY and rank == 1 and epoch == 1 else epoch
    store.wait([f"dataset-{wanted}"], TIMEOUT)  # B


for epoch in range(2):
    prepare(epoch)
    value = torch.ones(1)
    dist.all_reduce(value)  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
