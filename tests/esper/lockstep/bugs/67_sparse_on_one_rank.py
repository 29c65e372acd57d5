# META ws=3 guilty=1 opA=all_reduce opB=all_reduce expect=mismatch
# META class=shape_mismatch ref=NVIDIA/nccl#1394
"""One rank's embedding was built with sparse gradients.

Today: an error of the transport, or a hang.
Wanted: rank 1 reduces a sparse tensor where ranks 0, 2 reduce a dense one.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
embedding = nn.Embedding(10, 4, sparse=FAULTY and rank == 1)
embedding(torch.tensor([1, 3])).sum().backward()
assert embedding.weight.grad is not None
dist.all_reduce(embedding.weight.grad)  # A B
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
