"""More point-to-point calls and unawaited works than any ring or table holds, one rank far ahead of the
other.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
COUNT = 9000
side = dist.new_group([0, 1])
if rank == 0:
    pending = [dist.isend(torch.tensor([float(n)]), 1, tag=n % 3) for n in range(COUNT)]
    dist.barrier(group=side)
    assert pending[-1] is not None
    pending[-1].wait()
else:
    dist.barrier(group=side)
    value = torch.zeros(1)
    for n in range(COUNT):
        dist.recv(value, 0, tag=n % 3)
        assert value.item() == n
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
