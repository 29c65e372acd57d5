"""Works that nobody ever waits for, sends that are never received among them, are left when the
program ends.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
side = dist.new_group([0, 1])
value = torch.ones(4)
left = []
if rank == 0:
    left.append(dist.isend(torch.zeros(4), 1, tag=7))
for _ in range(3):
    left.append(dist.all_reduce(value, async_op=True))
dist.barrier(group=side)
print(f"DONE {rank}", flush=True)
