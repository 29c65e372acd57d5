"""As with any helper thread that serves the other group, but this one is unknown to `threading`: who counts
`threading.active_count()` sees a rank with one thread that is blocked, hence a cycle.
"""
# ranks: 2, patience: 20, quick

import _thread
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
group_a, group_b = dist.new_group([0, 1]), dist.new_group([0, 1])
a, b = torch.ones(1), torch.ones(1)
served = _thread.allocate_lock()


def serve_late() -> None:
    time.sleep(1.0)
    dist.all_reduce(b, group=group_b)
    served.release()


if rank == 0:
    served.acquire()
    _thread.start_new_thread(serve_late, ())
    dist.all_reduce(a, group=group_a)
    served.acquire()
else:
    dist.all_reduce(b, group=group_b)
    dist.all_reduce(a, group=group_a)
assert a.item() == b.item() == 2.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
