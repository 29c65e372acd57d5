# META ws=3 guilty=0 opA=all_reduce_coalesced opB=all_reduce_coalesced expect=mismatch
# META class=op_count_mismatch ref=Lightning-AI/pytorch-lightning#19106;pytorch/pytorch#64629
"""Gradients are reduced coalesced, without those that are None on this rank.

Today: a size error of the transport.
Wanted: rank 0 reduces fewer tensors in the same call as ranks 1, 2.
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
gradients = [torch.ones(4), torch.ones(2), torch.ones(3)]
if FAULTY and rank == 0:
    gradients.pop()
with dist.distributed_c10d._coalescing_manager():  # A B
    for gradient in gradients:
        dist.all_reduce(gradient)
assert gradients[0][0].item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
