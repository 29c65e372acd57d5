"""One rank sleeps just under the patience while the others wait: a time-out of the watcher's own
accuses it.
"""
# ranks: 3, patience: 3

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
total = torch.zeros(4)
for step in range(3):
    if rank == 1 and step == 1:
        time.sleep(2.4)
    part = torch.full((4,), float(rank + step))
    dist.all_reduce(part)
    total += part
assert total.tolist() == [18.0] * 4
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
