# One pair contradicts each other; both may be named, but neither neighbour.
# META ws=4 guilty=1|1,2|2 opA=send|recv opB=send|recv expect=mismatch|peer
# META class=p2p_mismatch ref=NVIDIA/Megatron-LM#5100
"""Stages of a pipeline exchange shapes before activations, but one was configured for a fixed shape.

Today: garbage for a shape, a size error in the transport, or a deadlock of the whole pipeline.
Wanted: rank 1 sends its activations, float32 [6], where rank 2 receives a shape, int64 [2].
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
if rank > 0:
    shape = torch.zeros(2, dtype=torch.int64)
    dist.recv(shape, rank - 1)  # A B
    activations = torch.zeros(int(shape[0]), int(shape[1]))
    dist.recv(activations, rank - 1)
else:
    activations = torch.ones(2, 3)
if rank < world - 1:
    if not (FAULTY and rank == 1):
        dist.send(torch.tensor(activations.shape), rank + 1)
    dist.send(activations, rank + 1)  # A B
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
