"""However a session ends, no process and no directory of it stays."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.pytest_esper_ddp.inner import Inner, Session, eventually, warned

# Seconds that a session may take to end when it is told to.
ENDS_WITHIN = 10
HANGS = """
@pytest.mark.ddp(world_size=3, lockstep="off", timeout=90)
def test_hangs(ddp):
    if ddp.rank == 0:
        import subprocess
        subprocess.Popen(["sleep", "1000"])
    (Path("up") / str(ddp.rank)).write_text(str(ddp.shared_path))
    dist.barrier() if ddp.rank else time.sleep(1000)

@ddp2
def test_next(ddp): ...
"""
KILLS = """
@ddp2
def test_before(ddp):
    dist.barrier()

@ddp2
@pytest.mark.parametrize("when", ["between", "within"])
def test_kills(ddp, when):
    if when == "within":
        os.kill(os.getppid(), signal.SIGKILL) if ddp.rank == 0 else time.sleep(1000)

def test_plain(): ...

@ddp2
def test_after(ddp): ...

@ddp4
def test_after_on_other_ranks(ddp): ...
"""
ZYGOTE_KILLER = """
import gc, os, signal, time
import psutil, pytest

def end_zygote(number):
    clients = [one for one in gc.get_objects() if type(one).__name__ == "ZygoteClient"]
    (zygote,) = [psutil.Process(one._process.pid) for one in clients if one._process.returncode is None]
    zygote.send_signal(number)
    while zygote.status() != psutil.STATUS_ZOMBIE:  # a wait would take its status away
        time.sleep(0.01)

@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session):
    if "RANK" not in os.environ and not session.config.pluginmanager.hasplugin("esper-ddp-zygote"):
        end_zygote(signal.SIGKILL)

def pytest_runtest_logfinish(nodeid):
    if nodeid.endswith("between]") and "RANK" not in os.environ:
        end_zygote(signal.SIGTERM)
"""


@pytest.fixture
def hanging(inner: Inner) -> Session:
    """A session in the middle of a test whose ranks hang."""
    inner.file(HANGS)
    (inner.folder / "up").mkdir()
    process = inner.begin()
    # Written, too, and not only made: an empty one would name no directory.
    assert eventually(lambda: sum(bool(path.read_text()) for path in (inner.folder / "up").iterdir()) == 3)
    return process


def base_of(inner: Inner) -> Path:
    """The directory that the session made for its ranks."""
    return Path(next((inner.folder / "up").iterdir()).read_text()).parent.parent


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_session_that_is_ended_leaves_nothing(
    inner: Inner, hanging: Session, number: signal.Signals
) -> None:
    # pytest, what ranks are forked from, the ranks, what a test has started, and the guard
    assert len(inner.alive()) == 1 + 1 + 3 + 1 + 1
    base = base_of(inner)
    hanging.send_signal(number)
    result = hanging.finish(within=ENDS_WITHIN)
    assert eventually(lambda: not inner.alive(), within=2), inner.alive()
    assert eventually(lambda: not base.exists(), within=2)
    if number == signal.SIGINT:
        assert result.status == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in result.text
        assert "Traceback" not in result.errors
    else:
        assert result.status == -number


def test_the_process_that_ranks_are_forked_from_may_end_at_any_time(inner: Inner) -> None:
    inner.file(KILLS)
    inner.file(ZYGOTE_KILLER, "conftest.py", head="")
    result = inner.run(starts=4)
    gone = "the process that ranks are forked from has ended with signal"
    assert {name: end for name, end in result.ends.items() if end != "PASSED"} == {
        "test_kills[within]": "ERROR"
    }, result.text
    assert result.messages["test_kills[within]"] == f"{gone} SIGKILL"
    assert len(result.passed) == 5
    assert warned(result) == {
        "test_before": f"{gone} SIGKILL; a new one was started",
        "test_kills[within]": f"{gone} SIGTERM; a new one was started",
        "test_after": f"{gone} SIGKILL; a new one was started",
    }
    assert "Traceback" not in result.text + result.errors


STOPS_THE_ZYGOTE = """
@pytest.mark.ddp(world_size=2, isolation="fresh")
def test_stops(ddp):
    dist.barrier()
    if ddp.rank == 0:
        os.kill(os.getppid(), signal.SIGSTOP)

@pytest.mark.ddp(world_size=2, isolation="fresh")
def test_next(ddp):
    dist.barrier()

@ddp2
def test_after(ddp):
    dist.barrier()
"""


def test_the_process_that_ranks_are_forked_from_may_be_stopped(inner: Inner) -> None:
    inner.file(STOPS_THE_ZYGOTE)
    result = inner.run()
    assert result.passed == {"test_stops", "test_next", "test_after"}, result.text
    said = (
        "the process that ranks are forked from was stopped by a signal, and was ended; a new one was started"
    )
    assert warned(result) == {"test_next": said}
    assert eventually(lambda: not inner.alive(), within=2), inner.alive()


ENDS_THE_ZYGOTE = """
if os.environ.get("OMP_NUM_THREADS") == "1":
    with open("tries", "a") as file:
        file.write("x")
    os._exit(3)

@ddp2
@pytest.mark.parametrize("number", range(5))
def test_one(ddp, number): ...

def test_plain(): ...
"""


def test_a_module_that_ends_the_process_that_ranks_are_forked_from(inner: Inner) -> None:
    inner.file(ENDS_THE_ZYGOTE)
    result = inner.run(env={"OMP_NUM_THREADS": "2"}, starts=2)
    assert result.passed == {"test_plain"}
    said = {result.messages[f"test_one[{number}]"] for number in range(5)}
    assert said == {"the process that ranks are forked from has ended with status 3"}
    assert (inner.folder / "tries").read_text() == "xx"


def test_a_process_that_a_test_has_started_ends_with_its_ranks(inner: Inner) -> None:
    inner.file(
        "import subprocess\n@ddp2\ndef test_starts(ddp):\n"
        f"    subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(1000)'])\n"
    )
    assert inner.run().passed == {"test_starts"}
    assert eventually(lambda: not inner.alive(), within=2), inner.alive()


SHOWN = """
import time

class Slow:
    def __repr__(self):
        time.sleep({seconds})
        return "shown"

def fail(slow):
    raise ValueError("of rank 1")

@ddp2
def test_both_fail(ddp):
    if ddp.rank == 0:
        raise ValueError("of rank 0")
    {before}
"""


def test_an_error_that_takes_long_to_show_is_waited_for(inner: Inner) -> None:
    inner.file(SHOWN.format(seconds=0.8, before="fail(Slow())"))
    told = inner.run().told("test_both_fail")
    assert "ValueError: of rank 0" in told
    assert "rank 1: ValueError: of rank 1" in told
    assert "its time after the first failure was over" not in told


@pytest.mark.parametrize("seconds", ["0", pytest.param("1000", marks=pytest.mark.stress)])
def test_what_comes_before_an_error_or_takes_far_longer_is_not(inner: Inner, seconds: str) -> None:
    inner.file(SHOWN.format(seconds=seconds, before="fail(Slow())" if seconds != "0" else "time.sleep(1000)"))
    told = inner.run().told("test_both_fail")
    assert re.search(
        r"rank 1 was sleeping at test_inner.py:\d+  \w+ .*when its time after the first failure was over",
        told,
    )


def test_what_comes_after_a_report_is_not_waited_for(inner: Inner) -> None:
    inner.file(
        """
import time

@pytest.fixture
def long(ddp):
    yield
    if ddp.rank:
        time.sleep(1000)

@ddp2
def test_long(long, ddp):
    raise ValueError(f"of rank {ddp.rank}")
"""
    )
    begun = time.monotonic()
    told = inner.run().told("test_long")
    assert time.monotonic() - begun < 5.0
    assert "rank 1: ValueError: of rank 1" in told


def test_a_rank_without_a_processor_is_waited_for_that_much_longer(inner: Inner) -> None:
    inner.file(
        """
        import time

        from pytest_esper_ddp.controller import watch

        watch.kept_waiting = lambda pid: time.monotonic()  # no rank ever has one
        """.replace("\n        ", "\n"),
        "conftest.py",
        head="",
    )
    inner.file(
        """
@pytest.mark.ddp(lockstep="off")
def test_both_fail(ddp):
    if ddp.rank == 1:
        time.sleep(1.0)
    raise ValueError(f"of rank {ddp.rank}")
"""
    )
    told = inner.run().told("test_both_fail")
    assert "rank 1: ValueError: of rank 1" in told
    assert "its time after the first failure was over" not in told
