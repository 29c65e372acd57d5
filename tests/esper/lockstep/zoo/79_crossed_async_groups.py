"""Ranks issue in two groups in opposite orders, asynchronously, and wait for both: a cycle for who takes the
issue for the wait.
"""
# ranks: 2, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
groups = [dist.new_group([0, 1]) for _ in range(2)]
for step in range(5):
    values = [torch.ones(1), torch.ones(1)]
    works = []
    for which in (0, 1) if rank == 0 else (1, 0):
        works.append(dist.all_reduce(values[which], group=groups[which], async_op=True))
        time.sleep(0.05)
    for work in works:
        assert work is not None
        work.wait()
    assert [value.item() for value in values] == [2.0, 2.0], step
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
