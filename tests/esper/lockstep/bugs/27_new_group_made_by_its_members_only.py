# Two of four made it and two did not: nothing but the documentation says which half is wrong.
# META ws=4 guilty=2,3|0,1|0,1,2,3 opA=new_group|none opB=new_group expect=group|mismatch
# META class=new_group_subset ref=pytorch/pytorch#81291;pytorch/pytorch#134314
"""A group is made by its members only; torch wants all ranks to make it, and numbers groups by that.

Today: the next group has another name on the ranks that made the first, and waits for strangers.
Wanted: new_group 0 is that of ranks 0, 1 on these, and that of all ranks on ranks 2, 3.
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
if rank < 2 or not FAULTY:
    pair = dist.new_group([0, 1], timeout=TIMEOUT)  # A B
everyone = dist.new_group(timeout=TIMEOUT)  # A B
value = torch.ones(2)
dist.all_reduce(value, group=everyone)
assert value[0].item() == 4.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
