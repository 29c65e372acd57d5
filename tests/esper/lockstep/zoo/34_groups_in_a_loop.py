"""Groups are made and destroyed in a loop: names and sequence numbers come again, and one rank is always
later.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
for round_ in range(8):
    members = sorted({round_ % world, (round_ + 1) % world})
    group = dist.new_group(members)
    if rank in members:
        for _ in range(round_ % 3 + 1):
            value = torch.tensor([float(rank)])
            if rank == members[-1]:
                time.sleep(0.02)
            dist.all_reduce(value, group=group)
            assert value.item() == float(sum(members))
        dist.destroy_process_group(group)
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
