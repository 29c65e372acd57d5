"""Hundreds of collectives in flight, each group's in an order of its own: at one moment nothing issued is
done.
"""
# ranks: 2, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
groups = [dist.new_group([0, 1]) for _ in range(3)]
values = {(n, step): torch.tensor([float(step)]) for n in range(3) for step in range(80)}
works = []
for n in (0, 1, 2) if rank == 0 else (2, 0, 1):
    for step in range(80):
        works.append(dist.all_reduce(values[n, step], group=groups[n], async_op=True))
if rank == 1:
    time.sleep(0.5)
for work in works:
    assert work is not None
    work.wait()
assert all(value.item() == 2.0 * step for (_, step), value in values.items())
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
