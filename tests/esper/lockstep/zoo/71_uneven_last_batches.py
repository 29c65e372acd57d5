"""Each rank has another number of batches and they agree by a collective when to stop: a rank that is through
goes on with empty steps.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
batches, total = [1.0] * (3 + 4 * rank), 0.0
while True:
    left = torch.tensor([float(bool(batches))])
    dist.all_reduce(left, op=dist.ReduceOp.MAX)
    if not left.item():
        break
    part = torch.tensor([batches.pop() if batches else 0.0])
    if part.item():
        time.sleep(0.03)
    dist.all_reduce(part)
    total += part.item()
assert total == 3 + 7 + 11
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
