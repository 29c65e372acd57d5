# META ws=4 guilty=3 opA=scatter opB=broadcast expect=mismatch
# META class=op_order ref=pytorch/pytorch#137256
"""A flag of one rank's configuration asks for another placement of a weight.

Today: a hang inside DTensor, which speaks of none of the two placements.
Wanted: rank 3 is in broadcast (to replicas); ranks 0, 1, 2 are in scatter (to shards).
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (world,))
whole = torch.ones(8, 8)
if FAULTY and rank == 3:
    weight = distribute_tensor(whole, mesh, [Replicate()])  # B
else:
    weight = distribute_tensor(whole, mesh, [Shard(0)])  # A
assert weight.to_local().sum().item() == 16.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
