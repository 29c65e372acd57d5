"""Ranks coordinate by the job's store rather than by collectives, and wait in it for seconds: no record
moves.
"""
# ranks: 3, patience: 20

import time
from datetime import timedelta

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
store = dist.distributed_c10d._get_default_store()
if rank == 0:
    time.sleep(1.0)
    store.set("plan", "7")
    assert store.add("arrived", 0) >= 0
else:
    store.wait(["plan"], timedelta(seconds=60))
    store.add("arrived", 1)
value = torch.tensor([float(store.get("plan"))])
dist.all_reduce(value)
assert value.item() == 21.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
