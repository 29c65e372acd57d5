"""`lockstep.start()` under torchrun: the sentence, the errors, and that nothing is left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.launching import ends, output, torchrun

PROGRAM = Path(__file__).parent / "program_watched.py"
RANKS, GUILTY = 4, 2
# What rank 2 does, what that is called, and the line of its sentence: its own, or that of the others.
FAULTS = {
    "skips": ("mismatch", "skips"),
    "other op": ("mismatch", "other op"),
    "order": ("order", "order"),
    "group": ("group", "group"),
    "state": ("drift", "state"),
    "killed": ("crashed", "innocent"),
    "exits": ("exited", "innocent"),
    "stops": ("frozen", "innocent"),
    "sleeps": ("frozen", "sleeps"),
    "spins": ("stalled", "innocent"),
}
PATIENCE = 3.0
ENDED = "closing signal SIGTERM"  # by torchrun
RUN = re.compile(r"explain (/\S+)")


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Path]:
    """The job's folder; the run folder of a verdict is taken away afterwards."""
    yield tmp_path
    for run in RUN.findall(output(tmp_path)):
        shutil.rmtree(run)


def line(mark: str) -> str:
    text = PROGRAM.read_text().splitlines()
    (number,) = [number for number, one in enumerate(text, 1) if one.endswith(f"# {mark}")]
    return f"{PROGRAM.name}:{number}"


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault == "skips" else pytest.mark.stress) for fault in FAULTS]
)
def test_every_rank_raises_and_the_job_fails(fault: str, shown: Path) -> None:
    kind, mark = FAULTS[fault]
    with torchrun(shown, fault, ranks=RANKS, program=PROGRAM) as agent:
        assert agent.wait(90) != 0
    told = output(shown)
    sentences = [one for one in told.splitlines() if one.startswith("lockstep: ")]
    innocent = {f"end-{rank}" for rank in range(RANKS) if rank != GUILTY}
    found = ends(shown)
    # Where a process has ended torchrun ends the others at its next look, which may be the first thing to
    # happen to them.
    ended = told.count(ENDED) if fault in ("killed", "exits") else 0
    assert len(sentences) == 1 or (not sentences and ended == len(innocent)), told
    assert all(re.search(rf"\brank {GUILTY}\b", one) for one in sentences)
    assert len(innocent & found.keys()) + ended >= len(innocent), told
    for note in found.values():
        assert note.startswith(f"{kind} ({GUILTY},) ")
        assert line(mark) in note
    begun = float((shown / "fault").read_text())
    suspected = PATIENCE if kind in ("frozen", "stalled") else 0.0
    assert all((shown / name).stat().st_mtime - begun < suspected + 3.0 for name in found)


@pytest.mark.stress
@pytest.mark.parametrize("fault", ["skips", "stops", "killed"])
def test_a_job_that_is_started_again_ends_well_and_leaves_nothing(fault: str, shown: Path) -> None:
    before = set(Path("/dev/shm").glob("lockstep.*"))
    with torchrun(shown, fault, ranks=RANKS, restarts=1, program=PROGRAM) as agent:
        assert agent.wait(120) == 0
    told = output(shown)
    said = told.count("lockstep: ")
    assert said == 1 or (fault == "killed" and not said and told.count(ENDED) == RANKS - 1), told
    assert told.count("over") == RANKS
    assert set(Path("/dev/shm").glob("lockstep.*")) - before == {Path(kept) for kept in RUN.findall(told)}
    assert [pid for pid in psutil.pids() if str(PROGRAM) in " ".join(command(pid))] == []


def command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


@pytest.mark.stress
def test_a_healthy_job_says_nothing(shown: Path) -> None:
    before = set(Path("/dev/shm").glob("lockstep.*"))
    with torchrun(shown, "none", ranks=RANKS, program=PROGRAM) as agent:
        assert agent.wait(90) == 0
    assert "lockstep" not in output(shown)
    assert set(Path("/dev/shm").glob("lockstep.*")) <= before
