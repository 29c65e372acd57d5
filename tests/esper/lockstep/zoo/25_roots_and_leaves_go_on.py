"""The root of a broadcast or scatter and the leaves of a reduce or gather go on before the others have come:
a rank is several collectives ahead, and waits in another group by then.
"""
# ranks: 4, patience: 20, quick

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
mine = pairs[rank // 2]
for step in range(4):
    value = torch.full((2,), float(rank if step % 2 else step))
    if rank == 3:
        time.sleep(0.2)
    dist.broadcast(value, src=0)
    dist.reduce(value, dst=3)
    part = torch.zeros(1)
    dist.scatter(part, [torch.tensor([float(one)]) for one in range(world)] if rank == 1 else None, src=1)
    dist.gather(part, [torch.zeros(1) for _ in range(world)] if rank == 2 else None, dst=2)
    dist.all_reduce(part, group=mine)
    assert part.item() == (1.0 if rank < 2 else 5.0)
    if rank == 3:
        assert value[0].item() == (0.0 if step % 2 else 4.0 * step)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
