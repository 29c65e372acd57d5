# META ws=3 guilty=1 opA=all_gather opB=barrier expect=mismatch|order
# META class=thread_order ref=KempnerInstitute/KempnerForge#104
"""A background thread saves with collectives of the group that the main thread uses, too.

Today: a hang with the main thread in a barrier and the thread in all_gather.
Wanted: rank 1's barrier came before its thread's all_gather; on ranks 0, 2 it is the other way.
"""

import os
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
late = FAULTY and rank == 1


def save() -> None:
    if late:
        time.sleep(0.8)
    dist.all_gather_object([None] * world, {"rank": rank})  # A


saver = threading.Thread(target=save)
saver.start()
if not FAULTY:
    saver.join()
elif not late:
    time.sleep(0.4)
dist.barrier()  # B
saver.join()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
