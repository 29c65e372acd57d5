# META ws=4 guilty=3 opA=all_to_all opB=all_reduce expect=wait_cycle|order
# META class=cross_pg_order ref=meta-pytorch/torchrec#4149
"""Embeddings are exchanged in one group, replicas reduced in another; one rank does the second first.

Today: a deadlock in production: most ranks in all_to_all, one in all_reduce.
Wanted: rank 3 is in all_reduce of the replicas; ranks 0, 1, 2 wait for it in all_to_all of the shards.
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
shard, replica = dist.new_group(timeout=TIMEOUT), dist.new_group(timeout=TIMEOUT)
rows, received, dense = torch.arange(8.0), torch.zeros(8), torch.ones(2)


def exchange() -> None:
    dist.all_to_all_single(received, rows, group=shard)  # A


def average() -> None:
    dist.all_reduce(dense, group=replica)  # B


for part in (average, exchange) if FAULTY and rank == 3 else (exchange, average):
    part()
assert dense[0].item() == 4.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
