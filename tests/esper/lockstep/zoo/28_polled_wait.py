"""A wait with a short time-out in a loop, with collectives of another group between two tries: a wait that
has failed is no fault, and one that goes on for seconds is not stuck.
"""
# ranks: 2, patience: 20, quick

import time
from datetime import timedelta

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
late, beat = dist.new_group([0, 1]), dist.new_group([0, 1])
value, beats = torch.ones(1), torch.zeros(1)
if rank == 0:
    work = dist.all_reduce(value, group=late, async_op=True)
    assert work is not None
    while True:
        try:
            work.wait(timedelta(milliseconds=50))
            break
        except RuntimeError:
            beats += 1
            more = torch.ones(1)
            dist.broadcast(more, src=0, group=beat)
    dist.broadcast(torch.zeros(1), src=0, group=beat)
    assert beats.item() >= 10
else:
    for seen in range(10):
        more = torch.zeros(1)
        dist.broadcast(more, src=0, group=beat)
        assert more.item() == 1.0, seen
        time.sleep(0.05)
    dist.all_reduce(value, group=late)
    while more.item():
        dist.broadcast(more, src=0, group=beat)
assert value.item() == 2.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
