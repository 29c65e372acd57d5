# The receive is from anyone: the calls don't tell which of the two still owes a result, or that rank 0 wants
# one too many. Only rank 1 alone would be wrong.
# META ws=3 guilty=2|0|1,2|0,1,2 opA=recv|barrier opB=barrier|recv expect=stalled|wait_cycle|peer|missing
# META class=p2p_mismatch ref=pytorch/pytorch#132003
"""A master receives two results from any source, and one worker skips its own.

Today: a hang, since the master does not know who it waits for.
Wanted: rank 0 waits for a result from anyone; ranks 1, 2 are in the barrier and send none.
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
    for _ in range(2):
        dist.recv(torch.zeros(1))  # A B
elif not (FAULTY and rank == 2):
    dist.send(torch.ones(1), 0)
dist.barrier()  # A B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
