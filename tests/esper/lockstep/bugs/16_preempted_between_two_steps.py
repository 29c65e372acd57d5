# META ws=3 guilty=0 opA=all_reduce opB=barrier expect=mismatch|raised
# META class=signal_race ref=Lightning-AI/pytorch-lightning#20806
"""SIGTERM comes to one rank first; its handler raises, and the rank goes to save before it leaves.

Today: a deadlock on preemption; rank 0 left at step 2, the rest wait in step 3.
Wanted: rank 0 was interrupted and is in the barrier of its save; ranks 1, 2 wait in all_reduce.
"""

import os
import signal
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


class PreemptedError(Exception):
    """The scheduler wants the machine back."""


def preempted(_signal: int, _frame: object) -> None:
    raise PreemptedError


signal.signal(signal.SIGTERM, preempted)
try:
    for step in range(5):
        if FAULTY and rank == 0 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        gradient = torch.ones(8)
        dist.all_reduce(gradient)  # A
except PreemptedError:
    dist.barrier()  # B
else:
    dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
