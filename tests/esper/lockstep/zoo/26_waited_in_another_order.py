"""Works waited for in another order than they were issued in, and through futures: the last issued is waited
for first, and some are never waited for by `wait` at all.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
values = [torch.full((8,), float(n + rank)) for n in range(6)]
works = []
for value in values:
    work = dist.all_reduce(value, async_op=True)
    assert work is not None
    works.append(work)
    time.sleep(0.05 * rank)
if rank == 0:
    for work in reversed(works):
        work.wait()
elif rank == 1:
    torch.futures.wait_all([work.get_future() for work in works])
else:
    while not all(work.is_completed() for work in works):
        time.sleep(0.01)
assert [value[0].item() for value in values] == [3.0 * n + 3 for n in range(6)]
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
