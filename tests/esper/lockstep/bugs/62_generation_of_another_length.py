# META ws=3 guilty=2 opA=all_gather opB=all_gather expect=mismatch
# META class=uneven_inputs ref=deepspeedai/DeepSpeed#8262;deepspeedai/DeepSpeed#860
"""A sharded student generates until each rank's own text ends; then the sharded teacher rates it.

Today: a deadlock: one rank in the teacher's forward, the others in the next decode step.
Wanted: rank 2 gathers the teacher's parameters; ranks 0, 1 gather the student's for another token.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def roll_out() -> None:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (world,))
    student, teacher = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 9))
    for model in (student, teacher):
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    state = torch.ones(1, 3)
    with torch.no_grad():
        for _ in range(2 if FAULTY and rank == 2 else 4):
            state = student(state)  # A
        teacher(state)  # B


roll_out()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
