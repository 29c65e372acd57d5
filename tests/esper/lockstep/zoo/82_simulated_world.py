"""Each rank also plans for a world of eight in a simulated group, in which nobody else exists and nothing is
waited for.
"""
# ranks: 2, patience: 20

import os

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

torch.set_num_threads(1)
launched = int(os.environ["RANK"])
for size in (8, 2):
    dist.init_process_group("fake", store=FakeStore(), rank=launched, world_size=size)
    for step in range(3 + launched):
        value = torch.ones(step + launched + 1)
        if launched:
            dist.broadcast(value, src=1)
        else:
            dist.all_reduce(value)
    dist.destroy_process_group()
dist.init_process_group("gloo")
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 2.0
dist.destroy_process_group()
print(f"DONE {launched}", flush=True)
