"""Lines that only ranks execute are covered, and nothing of the measurement stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pytest_esper_ddp.inner import PYTEST, Inner

LIBRARY = """
def by_both(rank):
    if rank == 1:
        return "one"
    return "zero"

def before_a_hang():
    return "waits"

def in_the_end():
    return "finalised"

def by_pytest():
    return "here"

def by_nobody():
    return "never"
"""
ONLY_IN_RANKS = "def imported():\n    return 1\n"
TESTS = """
import library

@pytest.fixture(scope="session")
def of_session():
    yield
    library.in_the_end()

@ddp2
@expect("missing", guilty=[1])
def test_hang(ddp):
    if ddp.rank == 0:
        library.before_a_hang()
        dist.barrier()

@ddp2
def test_killed(ddp, of_session):
    dist.barrier()
    if ddp.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)

@ddp2
def test_both(ddp, of_session):
    import of_ranks
    of_ranks.imported()
    assert library.by_both(ddp.rank) == ("one" if ddp.rank else "zero")
    dist.barrier()

def test_plain():
    assert library.by_pytest() == "here"
"""
EXPECTED = {"library.py": ["by_nobody"], "of_ranks.py": []}


@pytest.fixture
def measured(inner: Inner) -> Inner:
    inner.file(LIBRARY, "library.py", head="")
    inner.file(ONLY_IN_RANKS, "of_ranks.py", head="")
    inner.file(TESTS)
    # coverage writes its data into the folder that it is started in.
    inner.file("import sys\nsys.path.insert(0, '.')\n", "conftest.py", head="")
    return inner


def not_covered(report: Path) -> dict[str, list[str]]:
    """By file: the functions of which no line was executed."""
    files = json.loads(report.read_text())["files"]
    return {
        name: [
            function
            for function, found in files[name]["functions"].items()
            if function and found["summary"]["covered_lines"] == 0
        ]
        for name in ("library.py", "of_ranks.py")
    }


def left(inner: Inner) -> list[str]:
    return sorted(path.name for path in inner.folder.glob(".coverage*"))


@pytest.mark.parametrize("options", [(), ("-n", "2", "--cov-branch")], ids=["one process", "xdist"])
def test_with_pytest_cov(measured: Inner, options: tuple[str, ...]) -> None:
    result = measured.run("--cov=.", "--cov-report=json:out.json", "--cov-context=test", *options)
    assert result.passed == {"test_hang", "test_both", "test_plain"}, result.text
    assert not_covered(measured.folder / "out.json") == EXPECTED
    assert left(measured) == [".coverage"]
    assert "Traceback" not in result.text + result.errors

    import coverage

    data = coverage.CoverageData(str(measured.folder / ".coverage"))
    data.read()
    assert {"test_inner.py::test_both|run", "test_inner.py::test_plain|run"} <= data.measured_contexts()
    data.close()


def test_with_coverage_run(measured: Inner) -> None:
    with_coverage = ("-m", "coverage", "run", "--branch", "--source=.", *PYTEST)
    result = measured.finish(measured.start(command=with_coverage))
    assert result.passed == {"test_hang", "test_both", "test_plain"}, result.text
    assert left(measured) == [".coverage"]
    told = measured.finish(measured.start(command=("-m", "coverage", "json", "-o", "out.json")))
    assert told.status == 0, told.text + told.errors
    assert not_covered(measured.folder / "out.json") == EXPECTED
