# META ws=3 guilty=1 opA=scatter opB=scatter expect=mismatch
# META class=root_mismatch ref=NVIDIA/Megatron-LM#5370
"""Work is scattered by whoever thinks it is the coordinator.

Today: a hang, or the wrong work.
Wanted: rank 1 scatters from rank 1 where ranks 0, 2 scatter from rank 0.
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
coordinator = 1 if FAULTY and rank == 1 else 0
pieces = [torch.full((2,), float(target)) for target in range(world)] if rank == coordinator else None
piece = torch.zeros(2)
dist.scatter(piece, pieces, src=coordinator)  # A B
assert piece[0].item() == rank
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
