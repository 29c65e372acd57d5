"""A pool of threads issues one group's collectives, another thread on each rank, in an order that a lock
keeps: numbers of threads mean nothing.
"""
# ranks: 2, patience: 20

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def reduce(step: int) -> float:
    value = torch.tensor([float(step)])
    dist.all_reduce(value)
    return float(value.item())


with ThreadPoolExecutor(1 + rank) as pool:
    # One at a time, by whichever thread is free.
    assert [pool.submit(reduce, step).result() for step in range(40)] == [2.0 * step for step in range(40)]
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
