"""A new group's members are listed in another order on each rank, and one is made by its members only."""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
every = dist.new_group([0, 1, 2] if rank == 0 else [2, 1, 0])
value = torch.ones(1)
dist.all_reduce(value, group=every)
if rank:
    if rank == 2:
        time.sleep(0.3)
    pair = dist.new_group([1, 2], use_local_synchronization=True)
    dist.all_reduce(value, group=pair)
assert value.item() == (6.0 if rank else 3.0)
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
