# META ws=3 guilty=1 opA=all_reduce opB=none expect=exited|missing
# META class=op_count_mismatch ref=Lightning-AI/pytorch-lightning#19106
"""Buckets are reduced asynchronously and waited for together; one rank leaves after the first.

Today: `wait_all` never returns on the others.
Wanted: rank 1 left by sys.exit; ranks 0, 2 wait for the second bucket's all_reduce.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
buckets = [torch.ones(4), torch.ones(4)]
futures: list[torch.futures.Future[torch.Tensor]] = []
for index, bucket in enumerate(buckets):
    if FAULTY and rank == 1 and index == 1:
        futures[0].wait()
        sys.exit(0)  # B
    work = dist.all_reduce(bucket, async_op=True)  # A
    assert work is not None
    futures.append(work.get_future())
torch.futures.wait_all(futures)  # A
assert buckets[1][0].item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
