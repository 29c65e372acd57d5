# One pair disagrees: the sender's and the receiver's count are equally suspect.
# META ws=3 guilty=1|0,1|0 opA=all_to_all opB=all_to_all expect=mismatch
# META class=shape_mismatch ref=pytorch/pytorch#140563;deepspeedai/DeepSpeed#6634
"""Tokens are routed by counts that were exchanged before one rank dropped some.

Today: a size error in the transport, or tokens of the wrong expert.
Wanted: rank 1 sends 3 rows to rank 0, which expects 2 from it.
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
sends = [[1, 2, 1], [2, 1, 1], [1, 1, 2]]
receives = [sends[source][rank] for source in range(world)]
mine = list(sends[rank])
if FAULTY and rank == 1:
    mine[0] = 3
tokens, received = torch.ones(sum(mine), 2), torch.zeros(sum(receives), 2)
dist.all_to_all_single(received, tokens, receives, mine)  # A B
assert received.sum().item() == 2 * sum(receives)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
