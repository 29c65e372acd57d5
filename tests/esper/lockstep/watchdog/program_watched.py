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
from esper.distributed import join_job

GUILTY = 2
FOLDER, FAULT = Path(sys.argv[1]), sys.argv[2]


def differ(values: torch.Tensor, model: torch.nn.Module, guilty: bool) -> None:
    """All ranks have a part in it."""
    match FAULT:
        case "order":
            for name in ("b", "a") if guilty else ("a", "b"):
                with lockstep.tag(name):
                    dist.all_reduce(values)  # order
        case "group":
            dist.new_group([0, 2] if guilty else [0, 1])  # group
        case "state":
            if guilty:
                next(model.parameters()).data += 1
            dist.barrier()  # state


def go_astray(values: torch.Tensor) -> None:
    """Here."""
    (FOLDER / "fault").write_text(str(time.time()))
    match FAULT:
        case "skips":
            dist.barrier()  # skips
        case "other op":
            dist.broadcast(values, 0)  # other op
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleeps":
            time.sleep(1000)  # sleeps
        case "exits":
            sys.exit(5)
        case "spins":
            while True:
                pass


def main() -> None:
    torch.set_num_threads(1)
    join_job("gloo")  # init_process_group, for a job that may be started again
    rank = dist.get_rank()
    lockstep.start(patience=3)
    values = torch.ones(4)
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    lockstep.watch("model", model.module)
    for step in range(110):  # a watchdog looks twice a second
        if step == 50 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if rank == GUILTY and FAULT != "none":
                go_astray(values)
            differ(values, model, rank == GUILTY)
        model(torch.randn(8, 4)).sum().backward()  # innocent
        dist.all_reduce(values)
        time.sleep(0.02)
    dist.destroy_process_group()
    sys.stdout.write("over\n")


try:
    main()
except lockstep.LockstepError as error:
    found = error.diagnosis
    (FOLDER / f"end-{os.environ['RANK']}").write_text(f"{found.kind} {found.guilty} {error}")
    raise
