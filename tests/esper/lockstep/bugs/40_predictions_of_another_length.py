# META ws=3 guilty=2 opA=all_gather opB=all_gather expect=mismatch
# META class=shape_mismatch ref=huggingface/accelerate#19;pytorch/pytorch#174844
"""The last batch is shorter on one rank, and predictions are gathered as they are.

Today: all_gather returns on some ranks, and the next barrier hangs.
Wanted: rank 2 gathers [5, 3] where ranks 0, 1 gather [6, 3].
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
rows = 5 if FAULTY and rank == 2 else 6
predictions = torch.ones(rows, 3)
gathered = [torch.empty(rows, 3) for _ in range(world)]
dist.all_gather(gathered, predictions)  # A B
dist.barrier()
assert sum(len(part) for part in gathered) == 18
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
