"""Each rank is late in turn, longer than the patience in all: who adds the waits up, or counts from the start
of the rank's own silence rather than of the others' wait, accuses somebody.
"""
# ranks: 3, patience: 2

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.ones(1)
for step in range(3):
    if rank == step:
        time.sleep(1.3)
    dist.all_reduce(value)
# All are silent for longer than the patience, though nobody waits for that long.
time.sleep(2.6 if rank == 0 else 1.5)
dist.barrier()
assert value.item() == 27.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
