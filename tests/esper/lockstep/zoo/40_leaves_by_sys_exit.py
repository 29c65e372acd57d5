"""`sys.exit(0)` in the midst of the program on the ranks that are done, while the others go on among
themselves.
"""
# ranks: 3, patience: 20

import sys
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
rest = dist.new_group([1, 2])


def work() -> None:
    value = torch.ones(1)
    dist.all_reduce(value)
    if rank == 0:
        print(f"DONE {rank}", flush=True)
        sys.exit(0)
    for _ in range(5):
        time.sleep(0.1)
        dist.all_reduce(value, group=rest)
    assert value.item() == 96.0


work()
print(f"DONE {rank}", flush=True)
sys.exit()
