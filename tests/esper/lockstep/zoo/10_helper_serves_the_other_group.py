"""Two ranks wait for each other in two groups, a cycle as it seems, until a helper thread of one serves the
other group.
"""
# ranks: 2, patience: 20

import threading
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
group_a, group_b = dist.new_group([0, 1]), dist.new_group([0, 1])
a, b = torch.ones(1), torch.ones(1)


def serve_late() -> None:
    time.sleep(1.0)
    dist.all_reduce(b, group=group_b)


if rank == 0:
    helper = threading.Thread(target=serve_late)
    helper.start()
    dist.all_reduce(a, group=group_a)
    helper.join()
else:
    dist.all_reduce(b, group=group_b)
    dist.all_reduce(a, group=group_a)
assert a.item() == b.item() == 2.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
