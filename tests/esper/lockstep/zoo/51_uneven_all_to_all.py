"""All-to-all with uneven splits: each rank's sizes are its own, and two ranks' calls are alike in nothing but
their name.
"""
# ranks: 3, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
for step in range(3):
    to = [(rank + other + step) % 3 + 1 for other in range(world)]
    back = [(other + rank + step) % 3 + 1 for other in range(world)]
    received = torch.zeros(sum(back))
    dist.all_to_all_single(received, torch.full((sum(to),), float(rank)), back, to)
    assert received.tolist() == [float(other) for other in range(world) for _ in range(back[other])]
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
