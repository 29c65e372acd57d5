# META ws=3 guilty=0,1,2 opA=send|none opB=send expect=peer|wait_cycle
# META class=p2p_mismatch ref=NVIDIA/Megatron-LM#5100
"""A ring in which each rank sends to the right before it receives from the left.

Today: all ranks hang, at least where the backend does not buffer.
Wanted: ranks 0, 1, 2 each wait in a send for the next one's receive.
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
token, incoming = torch.full((4,), float(rank)), torch.zeros(4)
if not FAULTY and rank == 0:
    dist.recv(incoming, left)
    dist.send(token, right)
else:
    dist.send(token, right)  # A B
    dist.recv(incoming, left)
assert incoming[0].item() == left
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
