"""Collectives while an exception is handled, in `except` and `finally` on some ranks only: to be unwinding is
not to be guilty.
"""
# ranks: 3, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
total = 0.0
for step in range(6):
    failed = torch.zeros(1)
    try:
        if step % world == rank:
            raise ValueError("a bad batch")
        failed[0] = 0.0
    except ValueError:
        failed[0] = 1.0
        if step >= 3:
            dist.all_reduce(failed)
    else:
        if step >= 3:
            dist.all_reduce(failed)
    finally:
        if step < 3:
            dist.all_reduce(failed)
    total += failed.item()
assert total == 6.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
