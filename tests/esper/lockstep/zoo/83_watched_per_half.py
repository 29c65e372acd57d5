"""Each half of the ranks goes at its own pace and watches its own schedule, under one name: equal within the
half at each of its barriers, and different between the halves at any moment.
"""
# ranks: 4, patience: 20

import time

import torch
import torch.distributed as dist

from esper.lockstep import watch

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
mine = halves[rank // 2]
schedule = {"step": 0}
watch("schedule", lambda: schedule["step"])
for _ in range(3 + rank // 2 * 5):
    schedule["step"] += 1
    if rank == 2:
        time.sleep(0.05)
    dist.barrier(group=mine)
schedule["step"] = 100
dist.barrier()
assert schedule["step"] == 100
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
