# META ws=2 guilty=0 opA=all_reduce opB=none expect=raised
# META class=dataloader_worker_death ref=pytorch/pytorch#43455
"""A worker process of one rank's loader is killed.

Today: the other node hangs, with a connection error in the end.
The loader raises wherever its parent is when the worker's death is noticed, in the all_reduce, too.
Wanted: rank 0 raised RuntimeError from its loader; rank 1 waits in all_reduce.
"""

import os
import signal
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


class Samples(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if FAULTY and rank == 0 and index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(2)


def train() -> None:
    for batch in DataLoader(Samples(), num_workers=1, prefetch_factor=1):  # B
        dist.all_reduce(batch)  # A B


train()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
