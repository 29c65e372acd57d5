# META ws=3 guilty=1 opA=all_reduce opB=none expect=raised|missing|stalled|frozen
# META class=exception_one_rank ref=ray-project/ray#29927
"""The main thread fails, but a thread that is no daemon keeps its process: nobody sees that it is over.

Today: the traceback is hidden in one rank's log, and everyone waits.
Wanted: rank 1 raised ValueError in parse; ranks 0, 2 wait in all_reduce.
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
stop = threading.Event()


def heartbeat() -> None:
    while not stop.wait(0.05):
        pass


def parse(step: int) -> float:
    if FAULTY and rank == 1 and step == 2:
        raise ValueError("line 812")  # B
    return 1.0


threading.Thread(target=heartbeat).start()
for step in range(4):
    value = torch.tensor(parse(step))
    dist.all_reduce(value)  # A
stop.set()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
