"""All ranks try what the backend refuses, catch that and go on, one of them much later than the rest."""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
if rank == 2:
    time.sleep(0.5)
try:
    dist.all_reduce(torch.ones(2, 2).to_sparse(), op=dist.ReduceOp.MAX)
except (RuntimeError, NotImplementedError, ValueError):
    refused = torch.ones(1)
else:
    refused = torch.zeros(1)
dist.all_reduce(refused)
assert refused.item() == 3.0
if rank == 0:
    try:
        dist.broadcast(torch.ones(2), src=7)
    except (RuntimeError, ValueError):
        pass
    else:
        raise AssertionError("there is no rank 7")
dist.all_reduce(refused)
assert refused.item() == 9.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
