"""Time that a late rank is not blamed for, since it could not run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from esper.lockstep.run.starvation import Remembered, Starvation

PATIENCE = 2.0


@pytest.fixture
def rivals() -> Iterator[list[int]]:
    """Process ids of three that want the same processor all the time."""
    processor = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(3)]
    yield [process.pid for process in processes]
    for process in processes:
        process.kill()
        process.wait()


def test_what_grew_before_a_moment_does_not_count() -> None:
    one = Remembered(PATIENCE)
    for at in range(10):
        one.note(0, 100.0 + at, float(at))
    assert one.since(0, 105.0) == 4.0
    assert one.since(0, 105.9) == 4.0
    assert one.since(0, 50.0) == 9.0
    assert one.since(0, 200.0) == 0.0
    assert one.since(1, 50.0) == 0.0


def test_it_counts_from_the_moment_though_nobody_looked_then() -> None:
    one = Remembered(PATIENCE)
    one.note(0, 100.0, 7.0)
    one.note(0, 103.0, 9.5)
    assert one.since(0, 101.0) == 2.5


def test_little_is_remembered_of_what_grows_little() -> None:
    one = Remembered(PATIENCE)
    for at in range(1_000_000):
        one.note(0, at * 1e-3, at * 1e-5)
    assert one.since(0, 900.0) == pytest.approx(1.0, abs=PATIENCE / 100)


def test_a_process_that_has_gone_takes_nothing_back() -> None:
    one = Remembered(PATIENCE)
    one.note(0, 100.0, 1.0)
    one.note(0, 101.0, 3.0)
    one.note(0, 102.0, 0.0)
    assert one.since(0, 100.0) == 2.0


def test_who_is_ready_and_has_no_processor_is_not_late(rivals: list[int]) -> None:
    starvation = Starvation(rivals, PATIENCE, math.inf)
    begun = time.monotonic()
    end = begun + 20.0
    waited = [0.0] * 3
    while not all(one > 0.2 for one in waited):
        assert time.monotonic() < end
        starvation.look(time.monotonic())
        waited = [starvation.since(rank, begun) for rank in range(3)]
        time.sleep(0.01)
    assert max(waited) < time.monotonic() - begun


def test_nobody_is_late_while_nobody_looks() -> None:
    starvation = Starvation([os.getpid()], PATIENCE, 0.5)
    begun = time.monotonic()
    for at in (0.0, 0.4, 3.4, 3.8):
        starvation.look(begun + at)
    assert starvation.since(0, begun + 0.1) >= 3.0
    assert starvation.since(0, begun + 3.5) < 1.0


def test_time_in_io_counts_up_to_a_patience() -> None:
    starvation = Starvation([os.getpid()], PATIENCE, math.inf)
    begun = time.monotonic()
    for number in range(40):
        starvation.look(begun + number * 0.1)
        if number >= 10:
            starvation.in_io(0)
    assert starvation.since(0, begun + 3.0) == pytest.approx(0.9, abs=0.25)
    assert starvation.since(0, begun) == pytest.approx(PATIENCE, abs=0.25)


def test_who_asks_with_little_patience_is_told_as_exactly() -> None:
    one = Remembered(600.0)
    for at in range(40):
        one.note(0, 100.0 + at, at * 0.1)
    assert one.since(0, 138.5) == pytest.approx(0.1, abs=0.06)
