# META ws=3 guilty=1 opA=init_process_group|none opB=none expect=frozen|stalled
# META class=timeout_vs_straggler ref=mosaicml/composer#2071;pytorch/pytorch#129672
"""One rank is stuck in a download before it joins the process group.

Today: the others wait in init_process_group until its time-out.
Wanted: rank 1 sleeps in download; ranks 0, 2 wait in init_process_group.
"""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def download() -> None:
    if FAULTY and rank == 1:
        time.sleep(120)  # B


download()
dist.init_process_group("gloo", timeout=TIMEOUT)  # A
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
