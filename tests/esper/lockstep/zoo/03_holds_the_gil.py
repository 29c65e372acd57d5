"""One rank computes for a second in one C call that holds the GIL: no thread of its own can give a sign of
life, so a heartbeat that stops looks like a frozen process.
"""
# ranks: 2, patience: 20

import re
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
if rank == 0:
    length, begun = 16, time.monotonic()
    while time.monotonic() - begun < 1.0:
        # Backtracks over all partitions without ever giving the GIL away.
        assert re.match(r"(a+)+$", "a" * length + "b") is None
        length += 1
value = torch.tensor([float(rank + 1)])
dist.all_reduce(value)
assert value.item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
