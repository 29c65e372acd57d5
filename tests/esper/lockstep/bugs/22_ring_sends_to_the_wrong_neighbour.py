# META ws=4 guilty=2 opA=recv|barrier opB=send|recv expect=peer
# META class=p2p_mismatch ref=pytorch/pytorch#132003
"""A ring step by batch_isend_irecv, in which one rank computes its right neighbour wrongly.

Today: all four ranks hang.
Wanted: rank 2 sends to rank 0, which does not receive from it; rank 3 waits to receive from rank 2.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
right, left = (rank + 1) % world, (rank - 1) % world
if FAULTY and rank == 2:
    right = 0
incoming = torch.zeros(3)
operations = [
    dist.P2POp(dist.isend, torch.full((3,), float(rank)), right),
    dist.P2POp(dist.irecv, incoming, left),
]
for work in dist.batch_isend_irecv(operations):  # A B
    work.wait()
dist.barrier()  # A
assert incoming[0].item() == left
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
