# Two ends name each other with different tags: nothing but their program tells which is wrong.
# META ws=3 guilty=0,2|2 opA=recv|send opB=send|recv expect=peer|wait_cycle|mismatch
# META class=p2p_mismatch ref=pytorch/pytorch#132003
"""Results are told apart by the tag, and one worker sends its own under a tag of another.

Today: a hang of the sender and of the receiver.
Wanted: rank 2 sends to rank 0 with tag 1; rank 0 receives from rank 2 with tag 2.
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
if rank == 0:
    total = torch.zeros(2)
    for worker in (1, 2):
        part = torch.zeros(2)
        dist.recv(part, worker, tag=worker)  # A B
        total += part
    assert total[0].item() == 3.0
else:
    tag = 1 if FAULTY else rank
    dist.send(torch.full((2,), float(rank)), 0, tag=tag)  # A B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
