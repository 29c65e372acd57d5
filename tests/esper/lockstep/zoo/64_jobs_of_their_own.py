"""Four processes of one launch are two jobs of two, each with ranks 0 and 1 and a default group of its own:
the groups have the same names, and nothing to do with each other.
"""
# ranks: 4, patience: 20, quick

import os
import time

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

torch.set_num_threads(1)
launched = int(os.environ["RANK"])
job, rank = divmod(launched, 2)
store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
dist.init_process_group("gloo", store=PrefixStore(f"job {job}", store), rank=rank, world_size=2)
for _ in range(4 + 3 * job):
    value = torch.full((1 + job,), float(launched))
    time.sleep(0.05 * job)
    if job:
        dist.broadcast(value, src=1)
    else:
        dist.all_reduce(value)
    assert value[0].item() == (3.0 if job else 1.0)
dist.destroy_process_group()
print(f"DONE {launched}", flush=True)
