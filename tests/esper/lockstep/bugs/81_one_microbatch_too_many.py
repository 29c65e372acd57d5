# The sender has one more, or the receiver one fewer: their program alone says which is wrong.
# META ws=3 guilty=0|1|0,1|1,2 opA=send|barrier opB=send|barrier expect=peer|wait_cycle|missing
# META class=p2p_mismatch ref=NVIDIA/Megatron-LM#5370;pytorch/pytorch#132003
"""Two stages of a pipeline count microbatches differently.

Today: a hang at the end of the step.
Wanted: rank 0 sends a fourth microbatch; rank 1 received three and is in the barrier.
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
microbatch = torch.ones(4)
for _ in range(4 if FAULTY and rank == 0 else 3):
    if rank == 0:
        dist.send(microbatch, 1)  # A B
    elif rank == 1:
        dist.recv(microbatch, 0)
        dist.send(microbatch, 2)
    else:
        dist.recv(microbatch, 1)
dist.barrier()  # A B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
