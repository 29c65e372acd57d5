"""Two threads of each rank reduce in a group each, at their own pace: the order of calls in one rank's ledger
says nothing about the order in the other's.
"""
# ranks: 2, patience: 20

import threading
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
groups = [dist.new_group([0, 1]) for _ in range(2)]
sums = [0.0, 0.0]


def reduce_in(which: int) -> None:
    for step in range(30):
        if (step + which + rank) % 10 == 0:
            time.sleep(0.05)
        value = torch.tensor([float(step + which)])
        dist.all_reduce(value, group=groups[which])
        sums[which] += value.item()


threads = [threading.Thread(target=reduce_in, args=(which,)) for which in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert sums == [2.0 * sum(range(30)), 2.0 * sum(range(1, 31))]
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
