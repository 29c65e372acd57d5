"""`lockstep.start()` under torchrun: the sentence, the errors, and that nothing is left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.launching import ends, output, torchrun

PROGRAM = Path(__file__).parent / "program_watched.py"
RANKS, GUILTY = 4, 2
KINDS = {"skips": "mismatch", "killed": "crashed", "exits": "exited", "sleeps": "frozen", "spins": "stalled"}
WITH_LINE = ("skips", "sleeps")
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
    "fault", [pytest.param(fault, marks=() if fault == "skips" else pytest.mark.stress) for fault in KINDS]
)
def test_every_rank_raises_and_the_job_fails(fault: str, shown: Path) -> None:
    with torchrun(shown, fault, ranks=RANKS, program=PROGRAM) as agent:
        assert agent.wait(90) != 0
    told = output(shown)
    sentences = [one for one in told.splitlines() if one.startswith("lockstep: ")]
    assert len(sentences) == 1, told
    assert f"rank {GUILTY} " in sentences[0]
    innocent = {f"end-{rank}" for rank in range(RANKS) if rank != GUILTY}
    found = ends(shown)
    # Where a process has ended torchrun ends the others, and may be the first to do so.
    assert innocent <= found.keys() or fault in ("killed", "exits")
    for note in found.values():
        assert note.startswith(f"{KINDS[fault]} ({GUILTY},) rank {GUILTY} ")
        assert line("innocent") in note
        if fault in WITH_LINE:
            assert re.search(rf"rank {GUILTY} is .*{line(fault)} ", note)


@pytest.mark.stress
def test_a_healthy_job_says_nothing(shown: Path) -> None:
    before = set(Path("/dev/shm").glob("lockstep.*"))
    with torchrun(shown, "none", ranks=RANKS, program=PROGRAM) as agent:
        assert agent.wait(90) == 0
    assert "lockstep" not in output(shown)
    assert set(Path("/dev/shm").glob("lockstep.*")) <= before
