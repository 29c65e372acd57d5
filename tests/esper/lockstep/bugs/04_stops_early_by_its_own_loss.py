# META ws=4 guilty=0 opA=all_reduce opB=broadcast expect=mismatch
# META class=early_stopping ref=Lightning-AI/pytorch-lightning#379;isi-nlp/rtg#11
"""Each rank stops by the validation loss of its own shard, and rank 0 shares the best weights after the loop.

Today: a hang, or a size error that names a transport.
Wanted: rank 0 has stopped and is in broadcast_object_list; ranks 1, 2, 3 train on in all_reduce.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
best, patience = float("inf"), 2
for epoch in range(8):
    gradient = torch.ones(16)
    dist.all_reduce(gradient)  # A
    loss = 1.0 if FAULTY and rank == 0 else 1.0 / (epoch + 1)
    patience = 2 if loss < best else patience - 1
    best = min(best, loss)
    if patience == 0:
        break
checkpoint = [{"loss": best}]
dist.broadcast_object_list(checkpoint, src=0)  # B
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
