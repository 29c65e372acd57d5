# Each of the four waits for the next one; which half is wrong is not to be told.
# META ws=4 guilty=0,1,2,3|1,2|0,3 opA=all_reduce|none opB=all_reduce expect=wait_cycle
# META class=cross_pg_order ref=meta-pytorch/torchrec#4149;pytorch/pytorch#190396
"""A mesh of two by two, in which the ranks off the diagonal reduce columns before rows.

Today: a deadlock without a single group that all ranks share.
Wanted: ranks 0, 1, 3, 2 wait for each other in rows and columns, round in a ring.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
names = ["column", "row"] if FAULTY and rank in (1, 2) else ["row", "column"]
value = torch.ones(3)
for name in names:
    dist.all_reduce(value, group=mesh.get_group(name))  # A B
assert value[0].item() == 4.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
