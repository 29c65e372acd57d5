"""One rank names what its collectives are for and the others don't: a tag on one side contradicts nobody."""
# ranks: 3, patience: 20

import torch
import torch.distributed as dist

from esper.lockstep import tag

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
for step in range(3):
    value = torch.ones(1)
    if rank == 1:
        with tag(f"step {step}"):
            dist.all_reduce(value)
    else:
        dist.all_reduce(value)
    assert value.item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
