"""Each rank also has a group with nobody but itself, and uses it at its own pace."""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
alone = [dist.new_group([one]) for one in range(world)][rank]
for step in range(3 * rank):
    value = torch.tensor([float(step)])
    dist.all_reduce(value, group=alone)
    dist.barrier(group=alone)
    time.sleep(0.05)
    assert value.item() == step
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
