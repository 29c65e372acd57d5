# META ws=3 guilty=2 opA=barrier opB=none expect=stalled|frozen
# META class=rng_divergence ref=mosaicml/streaming#145
"""The name of a shared file is drawn from a generator that one rank has not seeded.

Today: the training hangs at its start.
Wanted: rank 2 spins in attach, for a file that nobody makes; ranks 0, 1 wait in the barrier.
"""

import os
import random
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def attach(name: str) -> None:
    while not (Path(tempfile.gettempdir()) / name).exists():  # B
        pass  # B


random.seed(None if FAULTY and rank == 2 else 5)
name = f"shard-{os.environ['MASTER_PORT']}-{random.randrange(10**9)}"
if rank == 0:
    (Path(tempfile.gettempdir()) / name).touch()
attach(name)
dist.barrier()  # A
if rank == 0:
    (Path(tempfile.gettempdir()) / name).unlink()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
