"""Ctrl-C, once and twice, wherever ranks are: pytest ends soon, says so, and leaves nothing."""

from __future__ import annotations

import signal
import time

import pytest

from tests.pytest_esper_ddp.inner import Inner, eventually

# Seconds from Ctrl-C to pytest's end; ranks that finalise fixtures may take as long as they are given for it.
ENDS_WITHIN = 10
SOFT_END = 5
PLACES = """
@pytest.fixture(scope="session")
def slow_setup():
    Path("up").touch()
    time.sleep(1000)

@ddp2
def test_set_up(slow_setup): ...

@ddp2
def test_compute(ddp):
    Path("up").touch()
    while True:
        torch.ones(10).sum()

@pytest.fixture(scope="session")
def slow_end():
    yield
    (Path("finalising") / os.environ["RANK"]).touch()
    time.sleep(1000)

@ddp2
def test_first(slow_end): ...

@pytest.mark.ddp(world_size=3, lockstep="off", timeout=90)
def test_hang(ddp):
    Path("up").touch()
    dist.barrier() if ddp.rank else time.sleep(1000)

@ddp2
def test_of_those_that_wait(slow_end): ...
"""
IMPORTS = """
if os.environ.get("OMP_NUM_THREADS") == "1":
    Path("up").touch()
    time.sleep(1000)

@ddp2
def test_one(ddp): ...
"""


def interrupted(inner: Inner, *arguments: str, twice: bool = False) -> float:
    """Start a session, interrupt it when it is up; seconds until it has ended, leaving nothing."""
    process = inner.begin(*arguments, env={"OMP_NUM_THREADS": "2"})
    assert inner.eventually_exists("up")
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    if twice:
        assert eventually(lambda: len(list((inner.folder / "finalising").iterdir())) == 2)
        process.send_signal(signal.SIGINT)
    result = process.finish(within=ENDS_WITHIN + SOFT_END)
    took = time.monotonic() - began
    assert result.status == pytest.ExitCode.INTERRUPTED, result.text + result.errors
    assert "! KeyboardInterrupt !" in result.text
    assert "Traceback" not in result.text + result.errors
    assert eventually(lambda: not inner.alive(), within=2), inner.alive()
    return took


@pytest.mark.parametrize("where", ["set_up", "compute"])
def test_while_ranks_are_at_work(inner: Inner, where: str) -> None:
    inner.file(PLACES)
    assert interrupted(inner, "-k", where) < ENDS_WITHIN


def test_while_the_process_that_ranks_are_forked_from_imports(inner: Inner) -> None:
    inner.file(IMPORTS)
    assert interrupted(inner) < ENDS_WITHIN


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_while_other_ranks_finalise_their_fixtures(inner: Inner, *, twice: bool) -> None:
    inner.file(PLACES)
    (inner.folder / "finalising").mkdir()
    took = interrupted(inner, "-k", "first or hang or wait", twice=twice)
    assert took < (ENDS_WITHIN if twice else ENDS_WITHIN + SOFT_END)


EXITS = """
class Exit(Exception): ...  # such as click has

@ddp2
def test_of_that_name(ddp):
    raise Exit("of its own")

@ddp2
def test_exits(ddp):
    dist.barrier()
    if ddp.rank == 1:
        pytest.exit("enough")
    dist.barrier()

@ddp2
def test_not_run(ddp): ...
"""


def test_a_rank_may_end_the_session(inner: Inner) -> None:
    inner.file(EXITS)
    result = inner.run()
    assert result.status == pytest.ExitCode.INTERRUPTED, result.text
    assert result.ends == {"test_of_that_name": "FAILED", "test_exits": "FAILED"}
    assert result.messages["test_of_that_name"] == "rank 0: test_inner.Exit: of its own"
    assert result.messages["test_exits"] == "rank 1 raised before barrier #1"
    assert "Interrupted: rank 1: Exit: enough" in result.text
