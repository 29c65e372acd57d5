# META ws=3 guilty=2 opA=init_process_group|none opB=none expect=raised|missing|exited
# META class=exception_one_rank ref=ray-project/ray#28314
"""One rank fails before it joins the process group.

Today: the others wait in init_process_group for half an hour.
Wanted: rank 2 raised FileNotFoundError in read_config; ranks 0, 1 wait in init_process_group.
"""

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def read_config() -> bytes:
    return Path("/nowhere/config.json" if FAULTY and rank == 2 else os.devnull).read_bytes()  # B


read_config()
dist.init_process_group("gloo", timeout=TIMEOUT)  # A
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
