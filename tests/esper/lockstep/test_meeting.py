"""Who can be watched: what ranks tell each other when they begin, and when one of them stops."""

import json
import os
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from esper import lockstep
from esper.lockstep.watchdog import meeting
from esper.lockstep.watchdog.watchdog import _process
from pytest_esper_ddp.handle import DDP
from tests.esper.lockstep.watchdog.notes import watched_processes

# Two heartbeats, and some looks more.
PATIENCE = 1.0
LONGER = 3.5


def await_end() -> None:
    """Of the watchdog's thread, if it has not come already."""
    for one in threading.enumerate():
        if one.name == "esper.lockstep watchdog":
            one.join(20)


def stderr(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err


@pytest.mark.ddp(2, lockstep="off")
def test_ranks_that_begin_at_different_places_are_not_watched(
    ddp: DDP, capfd: pytest.CaptureFixture[str]
) -> None:
    if ddp.rank == 1:
        dist.all_reduce(torch.ones(1), async_op=True)
    watchdog = lockstep.start(patience=PATIENCE)
    if ddp.rank == 0:
        dist.all_reduce(torch.ones(1), async_op=True)
    await_end()
    assert not watchdog.running
    watchdog.stop()
    dist.barrier()
    wanted = "lockstep.start() came after" if ddp.rank == 0 else ""
    assert wanted in stderr(capfd)


@pytest.mark.ddp(2, lockstep="off")
def test_once_a_rank_has_stopped_nobody_is_accused(ddp: DDP, capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = lockstep.start(patience=PATIENCE)
    dist.barrier()
    if ddp.rank == 1:
        watchdog.stop()
        time.sleep(LONGER)
    dist.barrier()
    assert watchdog.running == (ddp.rank == 0)
    watchdog.stop()
    assert "late" not in stderr(capfd)


@pytest.mark.ddp(2, lockstep="off")
def test_what_an_attempt_before_left_in_the_store_is_nobody(
    ddp: DDP, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    # torchrun's default rendezvous keeps one store, and may well count two attempts alike.
    store = c10d._get_default_store()
    number = _process.meetings
    for rank in range(2):
        member = replace(meeting.this_member(rank), pid=gone.pid)
        store.set(f"esper.lockstep/0/{number}/{rank}", json.dumps(asdict(member)))
    dist.barrier()
    with lockstep.start(patience=PATIENCE) as watchdog:
        if ddp.rank == 1:
            time.sleep(PATIENCE / 2)
        dist.barrier()
        time.sleep(LONGER)
        assert watchdog.running
        dist.barrier()
    assert "exited" not in stderr(capfd)


def sockets() -> set[str]:
    """Numbers of this process's sockets, of whatever kind."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            kind, _, number = os.readlink(link).partition(":")
            if kind == "socket":
                found.add(number.strip("[]"))
    return found


def connected_to(number: str) -> int | None:
    """The port of the other end; None for what is no TCP connection."""
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            if fields[9] == number and fields[3] == "01":
                return int(fields[2].rpartition(":")[2], 16)
    return None


@pytest.mark.ddp(2, backend="gloo", lockstep="off")
def test_one_connection_to_the_store_is_all_that_is_opened(ddp: DDP) -> None:
    dist.barrier()
    before = sockets()
    watchdog = lockstep.start()
    while watched_processes() < ddp.world_size:
        time.sleep(0.01)
    dist.barrier()
    (opened,) = sockets() - before
    store = meeting._innermost(c10d._get_default_store())
    assert connected_to(opened) == store.port
    dist.barrier()
    watchdog.stop()
    assert sockets() == before
