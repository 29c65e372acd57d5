"""The job numbers its ranks otherwise than the launcher did, by hosts, say: what the launcher calls 0 is rank
2 here, and who compares their peers by the launcher's numbers sees strangers.
"""
# ranks: 3, patience: 20

import os
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
launched = int(os.environ["RANK"])
dist.init_process_group("gloo", rank=(launched + 2) % 3, world_size=3)
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.tensor([float(rank)])
if rank:
    dist.recv(value, rank - 1)
time.sleep(0.3)
if rank < world - 1:
    dist.send(value + 1, rank + 1)
assert value.item() == rank
low = dist.new_group([0, 1])
if rank < 2:
    dist.broadcast(value, src=1, group=low)
else:
    time.sleep(0.3)
dist.broadcast(value, src=2)
assert value.item() == 2.0
dist.destroy_process_group()
print(f"DONE {launched}", flush=True)
