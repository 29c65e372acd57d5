"""Wherever a rank is stuck, it raises there, or ends: one rank goes elsewhere, each of the others waits in
its own way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.esper.lockstep.watchdog.jobs import Job, job, take_away

LONG = pytest.mark.stress


@pytest.fixture
def finished() -> Iterator[list[Job]]:
    """Jobs whose run folders are taken away afterwards."""
    jobs: list[Job] = []
    yield jobs
    for one in jobs:
        take_away(one)


# What rank 0 and 1 enter while rank 2 broadcasts, or receives what nobody sends.
TOGETHER = {
    "barrier": "dist.barrier()",
    "recv": "dist.recv(x, 2) if rank else dist.recv(x, 1)",
    "monitored_barrier": "dist.monitored_barrier()",
    "functional": "torch.distributed._functional_collectives.all_reduce(x, 'sum', dist.group.WORLD).add(1)",
    "all_gather_object": "dist.all_gather_object([None] * world, 'x' * 100)",
    "async": "dist.all_reduce(x, async_op=True).wait()",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("monitored_barrier",) else LONG) for name in TOGETHER]
)
def test_who_waits_in_a_collective_raises_in_it(name: str, tmp_path: Path, finished: list[Job]) -> None:
    done = job(
        tmp_path,
        f"""
        dist.all_reduce(x)
        if rank == 2:
            note.fault()
            dist.broadcast(x, 0) if {name != "recv"} else dist.recv(x, 0)  # guilty
        {TOGETHER[name]}  # innocent
        time.sleep(1000)
        """,
    )
    finished.append(done)
    errors = done.notes("error")
    assert {rank: error["type"] for rank, error in errors.items()} == dict.fromkeys(range(3), "LockstepError")
    assert all(error["main"] for error in errors.values())
    assert done.statuses == (1, 1, 1)
    assert done.said.count("lockstep: ") == 1


# What rank 1 does while ranks 0 and 2 are in two collectives that don't meet.
ELSEWHERE = {
    "store": "dist.distributed_c10d._get_default_store().wait(['never'])",
    "loader": "next(iter(torch.utils.data.DataLoader(Never(), num_workers=1)))",
    "queue": "__import__('queue').Queue().get()",
    "lock": "(lock := threading.Lock()).acquire(); lock.acquire()",
    "sleep": "time.sleep(1000)",
    "subprocess": "__import__('subprocess').run(['sleep', '1000'])",
    "join": "(one := threading.Thread(target=dist.barrier, daemon=True)).start(); one.join()",
}
NEVER = (
    "Never = type('Never', (), {'__len__': lambda one: 1, '__getitem__': lambda one, at: time.sleep(1000)})"
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG) for name in ELSEWHERE])
def test_who_is_elsewhere_raises_there(name: str, tmp_path: Path, finished: list[Job]) -> None:
    begun = time.monotonic()
    done = job(
        tmp_path,
        f"""
        {NEVER}
        dist.all_reduce(x)
        if rank == 1:
            note.fault()
            {ELSEWHERE[name]}  # elsewhere
        dist.all_reduce(x) if rank else dist.broadcast(x, 0)
        time.sleep(1000)
        """,
        start="patience=3",
    )
    finished.append(done)
    errors = done.notes("error")
    assert {rank: error["type"] for rank, error in errors.items()} == dict.fromkeys(range(3), "LockstepError")
    assert done.said.count("lockstep: ") == 1
    assert time.monotonic() - begun < 40.0
