# META ws=3 guilty=1 opA=all_reduce opB=none expect=crashed
# META class=signal_race ref=Lightning-AI/pytorch-lightning#20806
"""The scheduler's SIGTERM comes to one rank, which has no handler for it.

Today: a connection error on the others.
Wanted: rank 1 was killed by SIGTERM in compute; ranks 0, 2 wait in all_reduce.
"""

import os
import subprocess
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def compute() -> None:
    while True:
        torch.ones(100, 100) @ torch.ones(100, 100)  # B


value = torch.zeros(2)
for step in range(3):
    if FAULTY and rank == 1 and step == 1:
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -TERM {os.getpid()}"])
        compute()
    dist.all_reduce(value)  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
