"""A plain training program that watches itself, on torchrun's ranks: one of them goes astray."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from esper import lockstep

GUILTY = 2
FOLDER, FAULT = Path(sys.argv[1]), sys.argv[2]


def go_astray(values: torch.Tensor) -> None:
    """Here."""
    (FOLDER / "fault").write_text(str(time.time()))
    match FAULT:
        case "skips":
            dist.barrier()  # skips
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleeps":
            time.sleep(1000)  # sleeps
        case "exits":
            sys.exit(5)
        case "spins":
            while True:
                pass


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    lockstep.start(patience=3)
    values = torch.ones(4)
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    for step in range(60):
        if step == 50 and rank == GUILTY and FAULT != "none":
            go_astray(values)
        model(torch.randn(8, 4)).sum().backward()  # innocent
        dist.all_reduce(values)
        time.sleep(0.02)
    dist.destroy_process_group()


try:
    main()
except lockstep.LockstepError as error:
    found = error.diagnosis
    (FOLDER / f"end-{os.environ['RANK']}").write_text(f"{found.kind} {found.guilty} {error}")
    raise
