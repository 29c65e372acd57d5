"""Whole sessions: which processes there are, what options select, and what is said of wrong input."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.pytest_esper_ddp.inner import Inner

# Writes down every process that is started, and whether torch is there when the session ends.
SPY = """
import os, subprocess, sys
from pathlib import Path

started = []
original = subprocess.Popen.__init__

def spy(self, *args, **kwargs):
    started.append(1)
    original(self, *args, **kwargs)

subprocess.Popen.__init__ = spy

def pytest_unconfigure(config):
    Path("spied").write_text(f"{len(started)} {'torch' in sys.modules}")
"""
PLAIN = "def test_plain(): ...\n"


def spied(inner: Inner) -> str:
    return (inner.folder / "spied").read_text()


def test_a_session_without_tests_on_ranks_starts_nothing_and_imports_no_torch(inner: Inner) -> None:
    inner.file(SPY, "conftest.py", head="")
    inner.file(PLAIN, head="")
    result = inner.run(cold=True)
    assert (result.passed, spied(inner)) == ({"test_plain"}, "0 False")
    assert (
        "ddp: world-size 2, backend gloo, timeout 30 s, isolation pool, start fork, seed 0, slots 500"
        in result.text
    )
    assert result.table == []


def test_collect_only_and_help_start_nothing(inner: Inner) -> None:
    inner.file(SPY, "conftest.py", head="")
    inner.file("@ddp2\ndef test_one(ddp): ...\n")
    result = inner.run("--collect-only", "-q")
    assert "test_inner.py::test_one" in result.text
    assert spied(inner) == "0 True"
    text = inner.run("--help").text
    for flag in ("world-size=N[,M...]", "backend=gloo|nccl|auto", "timeout=SECONDS", "isolation=pool|fresh"):
        assert f"--ddp-{flag}" in text
    text = inner.run("--markers").text
    for name in ("ddp", "ddp_fault", "ddp_expect"):
        assert f"@pytest.mark.{name}(" in text


def test_a_selection_without_tests_on_ranks_ends_what_was_started(inner: Inner) -> None:
    inner.file(PLAIN + "@ddp2\ndef test_one(ddp): ...\n")
    assert inner.run("-k", "plain").passed == {"test_plain"}


WRONG = """
@pytest.mark.ddp(world_size=1)
def test_size(ddp): ...

@ddp2
@fault("explode", rank=0)
def test_fault(ddp): ...

@ddp2
@expect("hang")
def test_expect(ddp): ...

@pytest.mark.ddp(backend="nccl")
def test_backend(ddp): ...

@ddp2
def test_right(ddp):
    dist.barrier()

def test_plain(): ...
"""


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_wrong_input_fails_its_own_item_with_one_sentence(inner: Inner, arguments: tuple[str, ...]) -> None:
    inner.file(WRONG)
    result = inner.run(*arguments, env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.passed == {"test_right", "test_plain"}
    assert {name: end for name, end in result.ends.items() if name not in result.passed} == dict.fromkeys(
        ("test_size", "test_fault", "test_expect", "test_backend"), "ERROR"
    )
    assert (
        result.messages["test_size"] == "ddp: world_size=1 must be an integer >= 2 (one rank cannot diverge)"
    )
    assert result.messages["test_fault"].startswith(
        "ddp_fault('explode', rank=0): unknown kind 'explode'; known: "
    )
    assert result.messages["test_expect"].startswith("ddp_expect('hang'): unknown kind 'hang'; known: ")
    assert result.messages["test_backend"].startswith(
        "backend nccl at world size 2 needs 2 GPUs, one a rank; found 0: "
    )
    assert "Traceback" not in result.text + result.errors


def test_a_wrong_option_is_a_usage_error(inner: Inner) -> None:
    inner.file(PLAIN, head="")
    for arguments in ((), ("-n", "1")):
        result = inner.run("--ddp-world-size=1", *arguments)
        assert result.status == pytest.ExitCode.USAGE_ERROR
        assert (
            result.errors.strip() == "ERROR: --ddp-world-size=1: must be integers >= 2, separated by commas"
        )
    result = inner.run(env={"PYTEST_DDP_TIMEOUT": "soon"})
    assert result.errors.strip() == "ERROR: PYTEST_DDP_TIMEOUT=soon: must be a number of seconds > 0"
    inner.file("[pytest]\nddp_isolation = none\n", "pytest.ini", head="")
    assert inner.run().errors.strip() == "ERROR: ini key ddp_isolation=none: must be one of pool, fresh"


SWEPT = """
@ddp2
def test_swept(ddp):
    x = torch.ones(1)
    dist.all_reduce(x)
    assert x == ddp.world_size == dist.get_world_size()

@pytest.mark.ddp(3)
def test_of_three(ddp):
    assert ddp.world_size == 3

@ddp2
@fault("skip", rank=3, op="all_reduce")
@expect("missing", guilty=[3])
def test_only_of_four(ddp):
    dist.all_reduce(torch.ones(1))
"""


def test_several_world_sizes_run_each_test_at_each(inner: Inner) -> None:
    inner.file(SWEPT)
    inner.file("[pytest]\nddp_world_size = 2,4\n", "pytest.ini", head="")
    result = inner.run("-q")
    assert result.passed == {
        "test_swept[2ranks]",
        "test_swept[4ranks]",
        "test_of_three",
        "test_only_of_four[4ranks]",
    }
    assert result.messages["test_only_of_four[2ranks]"] == (
        "ddp_expect('missing', guilty=[3]): guilty=3 must be a rank of this world, 0 to 1"
    )
    # With -q there is no table.
    assert result.table == []


FIRST_FAILS = """
FINALISED = Path("finalised")

@pytest.fixture(scope="session")
def of_session():
    yield
    with FINALISED.open("a") as file:
        file.write("x")

@ddp2
def test_one(ddp, of_session):
    print(f"printed by {ddp.rank}")
    Path("shared").write_text(str(ddp.shared_path))

@ddp2
def test_two(ddp):
    assert ddp.rank == 5

@ddp2
def test_three(ddp): ...
"""


def test_the_first_failure_may_end_the_session_softly(inner: Inner) -> None:
    inner.file(FIRST_FAILS)
    # Options that shape output or need a terminal are pytest's alone, not the ranks'.
    options = (
        "-x",
        "--pdb",
        "--setup-show",
        "--durations=2",
        "--junitxml=out.xml",
        "-p",
        "no:xdist",
        "-W",
        "error",
    )
    result = inner.run(*options)
    assert result.ends == {"test_one": "PASSED", "test_two": "FAILED"}
    assert (inner.folder / "finalised").read_text() == "xx"
    assert "Traceback" not in result.errors
    assert (inner.folder / "out.xml").read_text().count("<testcase ") == 2


def test_output_goes_straight_out_where_it_is_not_captured(inner: Inner) -> None:
    inner.file(FIRST_FAILS)
    result = inner.run("-s", "-k", "test_one")
    assert result.passed == {"test_one"}
    assert {"printed by 0", "printed by 1"} <= set(re.findall(r"printed by \d", result.text))
    base = Path((inner.folder / "shared").read_text()).parent.parent
    assert re.fullmatch(r"pytest-ddp\.\d+\..+", base.name)
    assert not base.exists()


SPREAD = """
@pytest.fixture(scope="module")
def of_module():
    return []

@ddp2
@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(5))
def test_spread(ddp, of_module, number, record_property):
    of_module.append(number)
    record_property("number", number)
    record_property("seen by", ddp.rank)
    dist.barrier()

@ddp2
def test_failing(ddp):
    assert ddp.rank != 1

@ddp2
@fault("skip", rank=1, op="barrier")
@expect("missing", guilty=[1])
def test_fault(ddp):
    dist.barrier()
    dist.all_reduce(torch.ones(1)) if ddp.rank == 5 else None

def test_plain(of_module):
    of_module.append(-1)

@pytest.mark.ddp(1)
def test_wrong(ddp): ...
"""


def test_with_xdist(inner: Inner) -> None:
    for name in ("test_one.py", "test_two.py", "test_three.py"):
        inner.file(SPREAD, name)
    result = inner.run("-n", "2", "--dist=loadgroup", "--ddp-world-size=2,4", "--junitxml=out.xml")
    assert result.text.rstrip().splitlines()[-1].startswith("=")
    assert re.search(r"= 6 failed, 39 passed, 3 errors in", result.text), result.text
    assert result.messages["test_failing[2ranks]"].startswith("rank 1: assert 1 != 1")
    assert "Traceback" not in result.text + result.errors
    assert sorted(row[:4] for row in result.table) == [
        *[["fault[2ranks]", "skip on rank 1 (op barrier)", "missing", "1"]] * 3,
        *[["fault[4ranks]", "skip on rank 1 (op barrier)", "missing", "1"]] * 3,
        ["scenario", "fault", "outcome", "guilty"],
    ]
    properties = junit_properties(inner.folder / "out.xml")
    seconds = [found.pop("ddp_seconds") for found in properties.values() if found]
    assert all(0 < float(text) < 60 for text in seconds)
    assert properties["test_spread[2ranks-3]"] == {
        "number": "3",
        "seen by": "0 and 1",
        "ddp_world_size": "2",
        "ddp_kind": "healthy",
    }
    assert properties["test_failing[2ranks]"] == {
        "ddp_world_size": "2",
        "ddp_kind": "failed",
        "ddp_rank": "1",
    }
    assert properties["test_fault[4ranks]"] == {"ddp_world_size": "4", "ddp_kind": "missing", "ddp_rank": "1"}
    assert properties["test_plain"] == properties["test_wrong"] == {}


def junit_properties(path: Path) -> dict[str, dict[str, str]]:
    """The properties of each test of a JUnit file; several values of one name joined by `and`."""
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        mine = found[case.attrib["name"]] = {}
        for one in case.iter("property"):
            name, value = one.attrib["name"], one.attrib["value"]
            mine[name] = f"{mine[name]} and {value}" if name in mine else value
    return found


def test_plain_tests_between_tests_on_ranks_keep_their_fixtures(inner: Inner) -> None:
    text = """
    LOG = Path("log")

    @pytest.fixture(scope="module")
    def of_module():
        yield
        if not dist.is_initialized():
            with LOG.open("a") as file:
                file.write(__name__ + "\\n")

    def test_before(of_module): ...

    @ddp2
    def test_on_ranks(ddp, of_module): ...

    @pytest.fixture(scope="module")
    def bad_end():
        yield
        raise OSError("no end")
    """.replace("\n    ", "\n")
    inner.file(text, "test_one.py")
    inner.file(
        text + "def test_with_a_bad_end(bad_end): ...\n@ddp2\ndef test_last(ddp): ...\n", "test_two.py"
    )
    inner.file(text + "def test_after(of_module): ...\n", "test_three.py")
    result = inner.run("test_one.py", "test_two.py", "test_three.py")
    assert (inner.folder / "log").read_text().split() == ["test_one", "test_two", "test_three"]
    wrong = {name: end for name, end in result.ends.items() if "ERROR" in end or "FAILED" in end}
    # Where the module is over the last item of it gets the blame, as it does without ranks.
    assert wrong == {"test_last": "PASSED+ERROR"}
    assert result.messages["test_last"] == "OSError: no end"


BROKEN = "import nothing_of_this_name\n@pytest.mark.ddp\ndef test_one(ddp): ...\n"


def test_a_module_that_cannot_be_imported(inner: Inner) -> None:
    inner.file(BROKEN, "test_broken.py")
    inner.file("@ddp2\ndef test_right(ddp):\n    dist.barrier()\n")
    result = inner.run("--continue-on-collection-errors")
    assert result.text.count("ModuleNotFoundError: No module named 'nothing_of_this_name'") == 1
    assert result.passed == {"test_right"}


IN_THE_ZYGOTE = """
import multiprocessing
if os.environ.get("OMP_NUM_THREADS") == "1" and Path("only_here").exists():
    raise RuntimeError("only in the other process")

@ddp2
def test_one(ddp): ...

def test_plain(): ...
"""


def test_a_module_that_only_the_forking_process_cannot_import(inner: Inner) -> None:
    inner.file(IN_THE_ZYGOTE)
    (inner.folder / "only_here").touch()
    result = inner.run(env={"OMP_NUM_THREADS": "2"})
    assert result.ends == {"test_one": "ERROR", "test_plain": "PASSED"}
    told = result.told("test_one")
    assert "the processes that ranks are forked from could not collect test_inner.py::test_one:" in told
    assert "RuntimeError: only in the other process" in told


LATE = """
import gc, select

def test_plain():
    # Until the process that ranks are forked from has said what it collected.
    (channel,) = (one.channel for one in gc.get_objects() if type(one).__name__ == "ZygoteClient")
    assert select.select([channel], [], [], 60)[0]

@ddp2
def test_one(ddp):
    dist.barrier()
"""


def test_what_was_collected_may_have_been_said_long_before(inner: Inner) -> None:
    inner.file(LATE)
    result = inner.run("-p", "no:randomly")
    assert result.passed == {"test_plain", "test_one"}, result.text


STOPS = """
@ddp2
def test_one(ddp):
    dist.barrier()
    if ddp.rank == 1:
        pytest.exit("enough")

@ddp2
def test_two(ddp): ...
"""


def test_a_rank_may_end_the_session(inner: Inner) -> None:
    inner.file(STOPS)
    result = inner.run()
    assert result.ends == {"test_one": "FAILED"}
    assert "! Interrupted: rank 1: Exit: enough !" in result.text
