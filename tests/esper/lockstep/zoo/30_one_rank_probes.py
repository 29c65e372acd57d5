"""One rank tries what the backend refuses before anything is sent, and goes on: its failed call took no place
in the group's order, so all its later calls still match.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
if rank == 0:
    try:
        dist.all_reduce(torch.ones(2, 2).to_sparse(), op=dist.ReduceOp.MAX)
    except (RuntimeError, NotImplementedError, ValueError):
        pass
    else:
        raise AssertionError("gloo has learnt to do this: choose another probe")
for step in range(3):
    value = torch.tensor([float(step)])
    dist.all_reduce(value)
    assert value.item() == 2.0 * step
dist.broadcast(value, src=1)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
