# META ws=3 guilty=0 opA=reduce_scatter opB=reduce_scatter expect=mismatch
# META class=shape_mismatch ref=NVIDIA/nccl#1417
"""A flat gradient is padded to a multiple of another alignment on one rank.

Today: a transport-level size error, or a wrong tail.
Wanted: rank 0 enters reduce_scatter with 24 elements where ranks 1, 2 have 12.
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
alignment = 8 if FAULTY and rank == 0 else 4
flat = torch.ones(world * alignment)
shard = torch.empty(alignment)
dist.reduce_scatter_tensor(shard, flat)  # A B
assert shard.sum().item() == 12.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
