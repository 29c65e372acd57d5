# META ws=3 guilty=0 opA=barrier opB=all_gather expect=mismatch
# META class=rank0_only_barrier ref=deepspeedai/DeepSpeed#797;YalaLab/pillar-pretrain#9
"""Rank 0 alone asks for the full value of a sharded weight.

Today: a hang in the save.
Wanted: rank 0 is in the all_gather of full_tensor; ranks 1, 2 are in the barrier.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (world,))
weight = distribute_tensor(torch.arange(12.0), mesh, [Shard(0)])
if rank == 0 or not FAULTY:
    full = weight.full_tensor()  # B
    assert full.sum().item() == 66.0
dist.barrier()  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
