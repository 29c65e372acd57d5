"""Ranks are killed at any moment under torchrun: the job goes on, and ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.launching import ends, output, torchrun
from tests.integration.miniature import EPOCHS

TRIALS = 30
ALWAYS = (1,)  # also outside of the stress group
LONG = 150.0
POLL = 0.001
# What is the same at each of them has a note of its own; where an attempt begins to train depends on the one
# before, so later ones are killed before that.
BEGINNING = ("started", "joined", "resumed")
MOMENTS = (*BEGINNING, *(f"epoch{epoch}" for epoch in range(1, EPOCHS + 1)))


@dataclass(frozen=True)
class Kill:
    """SIGKILL for `rank`, `delay` seconds after `moment`."""

    rank: int
    moment: str
    delay: float


@dataclass(frozen=True)
class Trial:
    """A number of ranks, and one kill an attempt."""

    ranks: int
    kills: tuple[Kill, ...]

    @classmethod
    def drawn(cls, seed: int) -> Trial:
        """A third of the trials have four ranks, a third kill in the attempt that goes on, too."""
        drawn = random.Random(seed)
        ranks = 4 if seed % 3 == 2 else 2
        moments = [drawn.choice(MOMENTS), *([drawn.choice(BEGINNING)] if seed % 3 == 1 else [])]
        return cls(
            ranks, tuple(Kill(drawn.randrange(ranks), each, drawn.uniform(0, 0.05)) for each in moments)
        )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """What a run of so many ranks that nobody disturbs ends with."""
    known: dict[int, dict[str, str]] = {}

    def of(ranks: int) -> dict[str, str]:
        if ranks not in known:
            folder = tmp_path_factory.mktemp(f"undisturbed-{ranks}")
            with torchrun(folder, ranks=ranks) as job:
                assert job.wait(LONG) == 0, output(folder)
            known[ranks] = ends(folder)
            assert len(known[ranks]) == ranks
        return known[ranks]

    return of


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed in ALWAYS else pytest.mark.stress) for seed in range(TRIALS)]
)
def test_a_rank_that_is_killed_costs_no_bit(
    seed: int, tmp_path: Path, undisturbed: Callable[[int], dict[str, str]]
) -> None:
    trial = Trial.drawn(seed)
    expected = undisturbed(trial.ranks)
    doomed = [str(kill.rank) for kill in trial.kills]
    with torchrun(tmp_path, "doomed", *doomed, ranks=trial.ranks, restarts=len(doomed)) as job:
        until = time.monotonic() + LONG
        for attempt, kill in enumerate(trial.kills):
            note = tmp_path / f"{kill.moment}-{attempt}-{kill.rank}"
            while not (note.exists() and note.read_text()):
                assert job.poll() is None, f"{trial}\n{output(tmp_path)}"
                assert time.monotonic() < until, f"{trial}\n{output(tmp_path)}"
                time.sleep(POLL)
            time.sleep(kill.delay)
            os.kill(int(note.read_text()), signal.SIGKILL)
        assert job.wait(until - time.monotonic()) == 0, f"{trial}\n{output(tmp_path)}"
    assert ends(tmp_path) == expected, trial


@pytest.mark.stress
@pytest.mark.parametrize(("rank", "deaths"), [(0, 20), (1, 1)])  # the first one writes, the other reads
def test_no_moment_of_reading_or_writing_a_checkpoint_is_a_bad_one_to_die(
    rank: int, deaths: int, tmp_path: Path, undisturbed: Callable[[int], dict[str, str]]
) -> None:
    expected = undisturbed(2)
    with torchrun(tmp_path, "touched", str(rank), ranks=2, restarts=100) as job:
        assert job.wait(3 * LONG) == 0, output(tmp_path)
    assert ends(tmp_path) == expected
    assert len(list(tmp_path.glob(f"started-*-{rank}"))) > deaths
