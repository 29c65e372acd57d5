# META ws=4 guilty=3 opA=new_group opB=new_group expect=group|mismatch|order
# META class=new_group_subset ref=pytorch/pytorch#81291
"""Groups are made in the order of a mapping, which differs on one rank.

Today: groups of one name with different members; sums come from strangers.
Wanted: rank 3 makes the group of ranks 2, 3 first where ranks 0, 1, 2 make that of ranks 0, 1.
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
members = {"left": [0, 1], "right": [2, 3]}
names = ["right", "left"] if FAULTY and rank == 3 else ["left", "right"]
groups = {name: dist.new_group(members[name], timeout=TIMEOUT) for name in names}  # A B
value = torch.ones(1)
dist.all_reduce(value, group=groups["left" if rank < 2 else "right"])
assert value.item() == 2.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
