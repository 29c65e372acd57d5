# META ws=4 guilty=3 opA=all_reduce opB=all_reduce expect=order|mismatch
# META class=op_order name=loss|accuracy ref=Lightning-AI/pytorch-lightning#19680;horovod/horovod#498
"""Metrics are reduced in the order in which a dictionary was filled; the calls are asynchronous.

Today: silent: rank 3's loss is added to the others' accuracy.
Wanted: rank 3 reduces accuracy where ranks 0, 1, 2 reduce loss: the order is swapped.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from esper import lockstep

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
keys = ["accuracy", "loss"] if FAULTY and rank == 3 else ["loss", "accuracy"]
values = {"loss": torch.tensor(1.0), "accuracy": torch.tensor(0.5)}
pending = []
for key in keys:
    with lockstep.tag(f"log:{key}"):
        work = dist.all_reduce(values[key], async_op=True)  # A B
    pending.append(work)
for work in pending:
    assert work is not None
    work.wait()
assert (values["loss"].item(), values["accuracy"].item()) == (4.0, 2.0)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
