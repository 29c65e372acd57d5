# META ws=3 guilty=0 opA=all_reduce opB=none expect=exited
# META class=rank_crash ref=facebookresearch/fairseq#3989
"""A thread that guards the memory ends its process with `os._exit` while the main thread computes.

Today: a connection error on the others; the launcher sees status 3 and no traceback.
Wanted: rank 0 left by os._exit in guard; ranks 1, 2 wait in all_reduce.
"""

import os
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
full = threading.Event()


def guard() -> None:
    full.wait()
    os._exit(3)  # B


threading.Thread(target=guard, daemon=True).start()
value = torch.zeros(4)
for step in range(3):
    if FAULTY and rank == 0 and step == 2:
        full.set()
        while True:
            torch.ones(50, 50) @ torch.ones(50, 50)
    dist.all_reduce(value)  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
