# META ws=2 guilty=1 opA=barrier opB=none expect=frozen|stalled
# META class=rank_freeze ref=pytorch/pytorch#132696;instructlab/training#566
"""Ranks take turns by a file lock, and the first goes to the barrier before it gives it back.

Today: a time-out of rank 0's barrier.
Wanted: rank 1 waits for the lock in once; rank 0 waits in the barrier, with the lock.
"""

import fcntl
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
path = Path(tempfile.gettempdir()) / f"turn-{os.environ['MASTER_PORT']}"
if rank == 0:
    path.touch()
dist.barrier()
with path.open("rb") as turn:
    if rank == 1:
        time.sleep(0.3)
        fcntl.flock(turn, fcntl.LOCK_EX)  # B
    else:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not FAULTY:
            fcntl.flock(turn, fcntl.LOCK_UN)
    dist.barrier()  # A
path.unlink(missing_ok=True)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
