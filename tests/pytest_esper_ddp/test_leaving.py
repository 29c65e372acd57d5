"""Ranks that end when no test runs on them: their exit is an error of the last one that did."""

from __future__ import annotations

import pytest

from tests.pytest_esper_ddp.inner import Inner

LEAVES = """
import atexit

def of_the_module():
    if "RANK" in os.environ:
        Path("wrong").touch()

atexit.register(of_the_module)

@pytest.mark.ddp(isolation="fresh")
def test_fresh(ddp):
    dist.barrier()
    if ddp.rank == 1:
        atexit.register(os._exit, 3)

@pytest.mark.ddp(isolation="fresh")
def test_aborts(ddp):
    if ddp.rank == 1:
        atexit.register(os.abort)

@ddp2
def test_before(ddp):
    dist.barrier()
    Path(f"pid{ddp.rank}").write_text(str(os.getpid()))

@ddp2
def test_on_new_ranks(ddp):
    dist.barrier()
    assert int(Path(f"pid{ddp.rank}").read_text()) != os.getpid()

def test_plain(): ...

@ddp2
def test_last(ddp):
    dist.barrier()
    atexit.register(Path(f"ran{ddp.rank}").touch)
    if ddp.rank == 0:
        atexit.register(os._exit, 4)
"""
KILLER = """
import os, signal
from pathlib import Path
import psutil

def pytest_configure(config):
    # Of xdist's processes the worker's, which has the ranks.
    global has_ranks
    has_ranks = hasattr(config, "workerinput") or not config.getoption("numprocesses")

def pytest_runtest_logfinish(nodeid):
    if nodeid.endswith("test_before") and "RANK" not in os.environ and has_ranks:
        rank = psutil.Process(int(Path("pid1").read_text()))
        rank.send_signal(signal.SIGKILL)
        psutil.wait_procs([rank])
"""


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_ranks_that_end_between_and_after_tests(inner: Inner, arguments: tuple[str, ...]) -> None:
    inner.file(LEAVES)
    inner.file(KILLER, "conftest.py", head="")
    result = inner.run(*arguments)
    assert result.status == pytest.ExitCode.TESTS_FAILED, result.text
    # A worker of xdist can report on the test that it has come to alone.
    blamed = "test_on_new_ranks" if arguments else "test_before"
    wrong = {name: end for name, end in result.ends.items() if end != "PASSED"}
    assert wrong == dict.fromkeys(("test_fresh", blamed, "test_last"), "PASSED+ERROR"), result.text
    assert result.messages["test_fresh"] == "rank 1: exited with status 3 after its last test"
    assert result.messages[blamed] == "rank 1: was ended by signal 9 after its last test"
    assert result.messages["test_last"] == "rank 0: exited with status 4 after its last test"
    assert {path.name for path in inner.folder.glob("ran*")} == {"ran1"}
    assert not list(inner.folder.glob("wrong*"))
    assert "Traceback" not in result.text + result.errors
