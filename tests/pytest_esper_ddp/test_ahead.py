"""New ranks of a test start while those of the one before leave."""

from __future__ import annotations

import json

from tests.pytest_esper_ddp.inner import Inner

# What is alive when a test is over, in the process that reports it: a shell that watches is no rank.
ALIVE = """
import json, sys
from pathlib import Path
import psutil, pytest

@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid):
    if "pytest_esper_ddp.controller.session" in sys.modules:
        (zygote,) = [one for one in psutil.Process().children() if one.name() != "sh"]
        with open("alive", "a") as file:
            file.write(json.dumps([nodeid.partition("::")[2], len(zygote.children())]) + "\\n")

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    yield
    if "pytest_esper_ddp.controller.session" in sys.modules and Path("stop").exists():
        item.session.shouldstop = "enough"
    return True
"""
TESTS = """
fresh = pytest.mark.ddp(isolation="fresh")

@fresh
def test_first(ddp):
    (ddp.shared_path / str(os.getpid())).touch()
    dist.barrier()
    assert len(list(ddp.shared_path.iterdir())) == 2

@fresh
def test_second(ddp):
    (ddp.shared_path / str(os.getpid())).touch()
    dist.barrier()
    assert len(list(ddp.shared_path.iterdir())) == 2

@fresh
def test_fails(ddp):
    assert not ddp.rank

@fresh
def test_last(ddp):
    dist.barrier()
"""


def test_they_are_there_when_the_one_before_is_reported(inner: Inner) -> None:
    inner.file(ALIVE, "conftest.py", head="")
    inner.file(TESTS)
    result = inner.run()
    assert result.passed == {"test_first", "test_second", "test_last"}, result.text
    alive = dict(map(json.loads, (inner.folder / "alive").read_text().splitlines()))
    # None where a failure is to be told without delay, and none that no test will need.
    assert alive == {"test_first": 2, "test_second": 2, "test_fails": 0, "test_last": 0}


def test_a_session_that_stops_leaves_none_behind(inner: Inner) -> None:
    inner.file(ALIVE, "conftest.py", head="")
    inner.file(TESTS)
    (inner.folder / "stop").touch()
    result = inner.run()
    assert result.passed == {"test_first"}, result.text
    assert (inner.folder / "alive").read_text() == '["test_first", 2]\n'
