# META ws=3 guilty=2 opA=all_gather opB=none expect=exited|raised
# META class=exception_one_rank ref=NVIDIA/Megatron-LM#367
"""A checkpoint shard can't be read; rank 0 alone prints such errors, and the rank that failed leaves.

Today: no word, and a hang in the next collective.
Wanted: rank 2 left with status 1 in load_shard; ranks 0, 1 wait in all_gather.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def load_shard() -> torch.Tensor:
    name = "missing.pt" if FAULTY and rank == 2 else os.devnull
    try:
        Path(name).read_bytes()
    except OSError as error:
        if rank == 0:
            print(error, flush=True)
        sys.exit(1)  # B
    return torch.ones(2)


dist.barrier()
shards = [torch.empty(2) for _ in range(world)]
dist.all_gather(shards, load_shard())  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
