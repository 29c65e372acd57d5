"""Ranks leave groups at different times and in different orders while others go on in other groups."""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
everyone, low, high = dist.new_group([0, 1, 2]), dist.new_group([0, 1]), dist.new_group([1, 2])
value = torch.ones(1)
dist.all_reduce(value, group=everyone)
if rank == 0:
    dist.destroy_process_group(everyone)
    dist.all_reduce(value, group=low)
    dist.destroy_process_group(low)
elif rank == 1:
    time.sleep(0.5)
    dist.all_reduce(value, group=low)
    dist.destroy_process_group(low)
    time.sleep(0.5)
    dist.all_reduce(value, group=high)
    dist.destroy_process_group(everyone)
    dist.destroy_process_group(high)
else:
    dist.all_reduce(value, group=high)
    dist.destroy_process_group(high)
    dist.destroy_process_group(everyone)
assert value.item() == (6.0, 9.0, 9.0)[rank]
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
