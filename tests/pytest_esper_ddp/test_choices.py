"""Options that choose, order and end: with tests on ranks among others as without."""

from __future__ import annotations

import re
from pathlib import Path

from tests.pytest_esper_ddp.inner import HEAD, Inner, inner_session

# One text for both: on ranks, and as pytest has it.
ON_RANKS = f"{HEAD}\nmaybe_on_ranks = ddp2\n"
PLAIN = "import os, pytest\nmaybe_on_ranks = pytest.mark.filterwarnings('default')\n"
MIX = """
MENDED = os.path.exists("mended")

def test_first(): ...

@maybe_on_ranks
def test_second():
    print("printed")

@maybe_on_ranks
@pytest.mark.parametrize("value", ["a", "b"])
def test_third(value):
    assert MENDED or value == "a"

def test_fourth():
    assert MENDED

@pytest.fixture
def in_the_end():
    yield
    assert MENDED

@maybe_on_ranks
class TestClass:
    def test_fifth(self, in_the_end): ...

    @pytest.mark.skip(reason="not now")
    def test_sixth(self): ...

@maybe_on_ranks
def test_seventh(): ...
"""
SHUFFLED = """
import random

def pytest_collection_modifyitems(items):
    random.Random(7).shuffle(items)
"""
# Each in the folder that the ones before have left, with what their caches say.
STEPS: list[tuple[str, ...]] = [
    ("-v", "--durations=0", "-vv", "-p", "no:randomly", "-p", "no:timeout", "-p", "pytest_timeout"),
    ("--lf", "-x", "-v"),
    ("--ff", "--maxfail=2", "-q"),
    ("--stepwise", "-v"),
    ("--stepwise", "--stepwise-skip", "-v"),
    ("-k", "third or fifth", "--deselect", "test_it.py::test_third[a]", "-v", "--setup-plan"),
]


def run(inner: Inner, head: str, steps: list[tuple[str, ...]]) -> list[str]:
    """What each step prints, without what time, place and ranks put in."""
    (inner.folder / "test_it.py").write_text(head + MIX)
    seen = []
    for options in steps:
        result = inner.run("--rootdir=.", "--tb=no", "-rfE", *options, command=("-m", "pytest"))
        assert result.errors == ""
        seen.append(essence(result.text))
    return seen


def essence(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if re.match(r"^(platform|ddp:|rootdir|plugins|cachedir|configfile|hypothesis|\(\d+ durations)", line):
            continue
        told = re.sub(r" - (rank 0: )?.*", "", line)
        told = re.sub(r" in [\d.]+s|cache from [\d:]+ ago", "", told).replace("=", "").strip()
        if found := re.match(r"^[\d.]+s (setup|call|teardown) +(.*)$", told):
            told = f"took some time: {found[1]} {found[2]}"
        lines.append(re.sub(r" +", " ", told))
    # Durations are sorted by themselves.
    timed = sorted(line for line in lines if line.startswith("took"))
    return "\n".join([line for line in lines if not line.startswith("took")] + timed)


def test_they_choose_as_they_do_elsewhere(tmp_path: Path) -> None:
    seen = []
    for name, head in (("plain", PLAIN), ("ranks", ON_RANKS)):
        folder = tmp_path / name
        folder.mkdir()
        with inner_session(folder) as inner:
            seen.append(run(inner, head, STEPS))
    for options, plain, ranks in zip(STEPS, *seen, strict=True):
        assert ranks == plain, options


def test_in_any_order(inner: Inner) -> None:
    inner.file(SHUFFLED, "conftest.py", head="")
    (inner.folder / "mended").touch()
    plain, ranks = (run(inner, head, [("-v",)])[0] for head in (PLAIN, ON_RANKS))
    assert "test_it.py::test_seventh PASSED [ 12%]" not in plain.splitlines()[-3]
    assert ranks == plain
