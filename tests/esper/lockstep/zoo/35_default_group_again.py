"""The default group is destroyed and made again in one process, several times: number 3 of the new group is
not number 3 of the old.
"""
# ranks: 2, patience: 20, quick

import os
import time

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

torch.set_num_threads(1)
rank = int(os.environ["RANK"])
address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
for generation in range(4):
    store = PrefixStore(f"generation {generation}", TCPStore(*address, is_master=False))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for step in range(generation + 1):
        value = torch.full((step + 1,), float(generation))
        if generation % 2:
            dist.broadcast(value, src=0)
        else:
            dist.all_reduce(value)
        assert value[0].item() == generation * (1.0 if generation % 2 else 2.0)
    if rank == generation % 2:
        time.sleep(0.3)
    dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
