# META ws=3 guilty=2 opA=broadcast opB=all_reduce expect=order|mismatch
# META class=op_order ref=horovod/horovod#498;deepspeedai/DeepSpeed#2343
"""Two asynchronous collectives of one size are started in another order on one rank.

Today: silent, or a hang: gloo pairs them by their position.
Wanted: rank 2 starts all_reduce where ranks 0, 1 start broadcast: the order is swapped.
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
weight, count = torch.full((4,), float(rank)), torch.ones(4)


pending: list[dist.Work] = []


def share() -> None:
    pending.append(dist.broadcast(weight, src=1, async_op=True))  # A


def add_up() -> None:
    pending.append(dist.all_reduce(count, async_op=True))  # B


for start in (add_up, share) if FAULTY and rank == 2 else (share, add_up):
    start()
for work in pending:
    work.wait()
assert (weight[0].item(), count[0].item()) == (1.0, 3.0)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
