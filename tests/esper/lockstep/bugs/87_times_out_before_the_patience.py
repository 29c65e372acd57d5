# META ws=3 guilty=1 opA=all_reduce opB=none expect=frozen|stalled|missing
# META class=timeout_vs_straggler ref=pytorch/pytorch#140563;mosaicml/composer#2071
"""One rank is stuck, and the group's own time-out is shorter than anybody's patience.

Today: "Timed out waiting 2000ms" on healthy ranks; the stuck one lives on, and so does the job.
Wanted: rank 1 sleeps in download; ranks 0, 2 waited in all_reduce until their time-out.
"""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def download() -> None:
    if FAULTY and rank == 1:
        time.sleep(25)  # B


group = dist.new_group(timeout=timedelta(seconds=2) if FAULTY else TIMEOUT)
download()
value = torch.ones(3)
dist.all_reduce(value, group=group)  # A
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
