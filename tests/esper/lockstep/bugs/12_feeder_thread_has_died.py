# META ws=3 guilty=1 opA=all_reduce opB=none expect=frozen|stalled
# META class=exception_one_rank ref=Lightning-AI/pytorch-lightning#11841
"""The thread that feeds batches dies of an error that nobody looks at, and its rank waits for ever.

Today: a time-out on the healthy ranks.
Wanted: rank 1 sleeps in `batches.get()`; ranks 0, 2 wait in all_reduce.
"""

import contextlib
import os
import queue
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
batches: queue.Queue[torch.Tensor] = queue.Queue(maxsize=1)


def feed() -> None:
    with contextlib.suppress(OSError):
        for step in range(4):
            if FAULTY and rank == 1 and step == 2:
                raise OSError("stale file handle")
            batches.put(torch.ones(4))


threading.Thread(target=feed, daemon=True).start()
for _ in range(4):
    batch = batches.get()  # B
    dist.all_reduce(batch)  # A
    assert batch[0].item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
