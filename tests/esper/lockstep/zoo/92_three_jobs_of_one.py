"""Each process is a job of one, with a default group of its own, before and after they work together."""
# ranks: 3, patience: 20

import os

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

torch.set_num_threads(1)
launched = int(os.environ["RANK"])
for turn in range(2):
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    for step in range(launched + 1):
        value = torch.tensor([float(step + turn)])
        dist.all_reduce(value)
        assert value.item() == step + turn
    dist.destroy_process_group()
    if not turn:
        dist.init_process_group("gloo")
        value = torch.ones(1)
        dist.all_reduce(value)
        assert value.item() == 3.0
        dist.destroy_process_group()
print(f"DONE {launched}", flush=True)
