"""Runs a function on real ranks: forked processes, gloo, a FileStore."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which DDP and optimizers import at their first use, 2 s that each rank would pay
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from esper.lockstep.rank.lineage import die_with_parent
from esper.scheduling import yield_to_running


@dataclass(frozen=True)
class Outcome:
    """What one rank's function returned or raised, and how many seconds it took."""

    value: Any
    error: Exception | None
    seconds: float


def run_ranks(body: Callable[[int], Any], world_size: int, timeout: float = 20.0) -> list[Outcome]:
    """`body(rank)` on ranks with a default gloo group; raises TimeoutError when one doesn't answer."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank, args=(body, rank, world_size, Path(folder) / "store", theirs, os.getpid())
            )
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        until = time.monotonic() + timeout
        try:
            return [_receive(end, rank, until) for rank, end in enumerate(ends)]
        finally:
            for end in ends:
                with suppress(OSError):
                    end.send(None)
            for process in processes:
                process.join(max(0.1, min(2.0, until - time.monotonic())))
                if process.is_alive():
                    process.kill()
                    process.join()


def _receive(end: Connection, rank: int, until: float) -> Outcome:
    if not end.poll(max(0.0, until - time.monotonic())):
        raise TimeoutError(f"rank {rank} did not answer in time")
    outcome = end.recv()
    assert isinstance(outcome, Outcome)
    return outcome


def _rank(
    body: Callable[[int], Any], rank: int, world_size: int, store: Path, end: Connection, parent: int
) -> None:
    die_with_parent(parent)
    torch.set_num_threads(1)
    yield_to_running()
    dist.init_process_group(
        "gloo",
        store=FileStore(str(store), world_size),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=10),
    )
    begun = time.monotonic()
    try:
        outcome = Outcome(body(rank), None, time.monotonic() - begun)
    except Exception as error:  # noqa: BLE001 - whatever a rank raises is what the test looks at
        outcome = Outcome(None, error, time.monotonic() - begun)
    end.send(outcome)
    # A rank that leaves while another still connects to it breaks that one's start: all stay until all have
    # answered.
    with suppress(EOFError, OSError):
        end.recv()
