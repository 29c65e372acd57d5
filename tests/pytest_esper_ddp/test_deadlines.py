"""Clocks of other plugins beside a test on ranks: ours is the inner one."""

from __future__ import annotations

import re

import pytest

from pytest_esper_ddp.controller.deadlines import Deadline, deadline_of
from tests.pytest_esper_ddp.inner import Inner

HANGS = """
@pytest.mark.ddp(lockstep="off", timeout=60)
@pytest.mark.timeout(2, method="signal")
def test_by_signal(ddp):
    dist.barrier() if ddp.rank else time.sleep(1000)

@pytest.mark.ddp(lockstep="off", timeout=60)
@pytest.mark.timeout(2, method="thread")
def test_by_thread(ddp):
    dist.barrier() if ddp.rank else time.sleep(1000)

@pytest.mark.ddp(lockstep="off", timeout=60)
def test_by_faulthandler(ddp):
    dist.barrier() if ddp.rank else time.sleep(1000)

@ddp2
def test_next(ddp):
    dist.barrier()
"""
# To say where the ranks are takes longer than what is left of the others' time, 0.5 s.
SLOW_LOOK = """
import time
from pytest_esper_ddp.controller import watch

look = watch.current_line

def slow(*args, **kwargs):
    time.sleep(0.6)
    return look(*args, **kwargs)

watch.current_line = slow
"""


def test_our_deadline_comes_before_those_of_other_plugins(inner: Inner) -> None:
    inner.file(HANGS)
    inner.file(SLOW_LOOK, "conftest.py", head="")
    ini = "[pytest]\nfaulthandler_timeout = 2.5\nfaulthandler_exit_on_timeout = true\n"
    inner.file(ini, "pytest.ini", head="")
    result = inner.run()
    hangs = ("test_by_signal", "test_by_thread", "test_by_faulthandler")
    assert result.ends == {**dict.fromkeys(hangs, "FAILED"), "test_next": "PASSED"}, (
        result.text + result.errors
    )
    notes = {
        "test_by_signal": "1.6 s instead of 60, to come before pytest-timeout's 2 s",
        "test_by_thread": "1.6 s instead of 60, to come before pytest-timeout's 2 s",
        "test_by_faulthandler": "2 s instead of 60, to come before faulthandler_timeout's 2.5 s",
    }
    for name in hangs:
        found = re.search(
            rf"rank 0 was sleeping at test_inner.py:\d+  {name} at the test's time-out \((.*)\)", result.text
        )
        assert found is not None, result.text
        assert found[1] == notes[name]
    assert result.errors == ""  # no dump of stacks


@pytest.mark.parametrize(
    ("ini", "mark", "seconds", "note"),
    [
        ("", "", 30.0, ""),
        ("timeout = 100", "", 30.0, ""),
        ("timeout = 0", "", 30.0, ""),
        ("timeout = 20", "", 16.0, "16 s instead of 30, to come before pytest-timeout's 20 s"),
        ("timeout = 20", "@pytest.mark.timeout(60)", 30.0, ""),
        ("", "@pytest.mark.timeout(5)", 4.0, "4 s instead of 30, to come before pytest-timeout's 5 s"),
        ("faulthandler_timeout = 5", "", 30.0, ""),  # prints, and ends nothing
        ("faulthandler_exit_on_timeout = true", "", 30.0, ""),
        (
            "timeout = 20\nfaulthandler_timeout = 5\nfaulthandler_exit_on_timeout = true",
            "",
            4.0,
            "4 s instead of 30, to come before faulthandler_timeout's 5 s",
        ),
    ],
)
def test_the_ladder(pytester: pytest.Pytester, ini: str, mark: str, seconds: float, note: str) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    item = pytester.getitem(f"import pytest\n{mark}\ndef test_func(): ...\n")
    assert deadline_of(item, 30.0) == Deadline(seconds, note)
