"""One rank leaves for good; the others make a new world of two and are numbered anew in it."""
# ranks: 3, patience: 20

import os
import time

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

torch.set_num_threads(1)
launched = int(os.environ["RANK"])
store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
dist.init_process_group("gloo", store=PrefixStore("three", store), rank=launched, world_size=3)
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 3.0
dist.destroy_process_group()
if launched:
    dist.init_process_group("gloo", store=PrefixStore("two", store), rank=launched - 1, world_size=2)
    for step in range(5):
        if launched == 2:
            time.sleep(0.1)
        dist.all_reduce(value)
        dist.broadcast(value, src=step % 2)
    assert value.item() == 96.0
    dist.destroy_process_group()
print(f"DONE {launched}", flush=True)
