"""A training script with the watchdog in it, one line; and by request one rank that does not do its part.

    torchrun --nproc-per-node 4 examples/watchdog.py
    torchrun --nproc-per-node 4 examples/watchdog.py --break skip --rank 2

`docs/watchdog.md` shows what is printed.
"""

from __future__ import annotations

import argparse
import os
import signal
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from esper import lockstep
from esper.distributed import join_job


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small model; one rank may be told to go wrong.")
    parser.add_argument("--break", dest="fault", choices=("skip", "sleep", "stop", "kill", "raise"))
    parser.add_argument("--rank", type=int, default=1, help="the rank that goes wrong (1)")
    parser.add_argument("--at", type=int, default=3, metavar="STEP", help="where it does (3)")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--action", choices=("raise", "exit"), default="raise")
    parser.add_argument("--run-dir")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="nccl: one GPU a rank")
    chosen = parser.parse_args()

    device = torch.device("cpu")
    if chosen.backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    join_job(chosen.backend)  # init_process_group, for a job that torchrun may start again
    lockstep.start(chosen.patience, chosen.action, chosen.run_dir)

    rank = dist.get_rank()
    # What a restart is for: the second attempt goes well.
    breaks = rank == chosen.rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(16, 4).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(1, chosen.steps + 1):
        fault = chosen.fault if breaks and step == chosen.at else None
        if fault is not None and fault != "skip":
            go_wrong(fault)
        optimizer.zero_grad()
        loss = model(torch.randn(8, 16, device=device)).square().mean()
        loss.backward()
        optimizer.step()
        if fault != "skip":
            dist.barrier()  # rank 0 has written a checkpoint
    dist.destroy_process_group()
    print(f"rank {rank}: {chosen.steps} steps done", flush=True)


def go_wrong(fault: str) -> None:
    if fault == "sleep":
        time.sleep(3600)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise ValueError("corrupt sample 812")


if __name__ == "__main__":
    main()
