"""Two ranks wait for each other in two groups, a cycle as it seems, until a third one comes: then a callback
on a future, run by a thread of C++ that nobody can count, serves the other group.
"""
# ranks: 3, patience: 20, quick

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
first, second = dist.new_group([0, 1]), dist.new_group([0, 1])
a, b, x = torch.ones(1), torch.ones(1), torch.ones(1)
if rank == 2:
    time.sleep(1.0)
work = dist.all_reduce(x, async_op=True)
assert work is not None
if rank == 0:

    def serve(_: torch.futures.Future[object]) -> None:
        dist.all_reduce(b, group=second)

    served = work.get_future().then(serve)
    dist.all_reduce(a, group=first)
    served.wait()
elif rank == 1:
    dist.all_reduce(b, group=second)
    dist.all_reduce(a, group=first)
work.wait()
assert (a.item(), b.item(), x.item()) == ((1.0, 1.0, 3.0) if rank == 2 else (2.0, 2.0, 3.0))
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
