"""`os._exit(0)` at the end, at different times: no teardown, no atexit, no destroyed group, and
nobody waits.
"""
# ranks: 3, patience: 20

import os
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 3.0
time.sleep(0.4 * rank)
print(f"DONE {rank}", flush=True)
os._exit(0)
