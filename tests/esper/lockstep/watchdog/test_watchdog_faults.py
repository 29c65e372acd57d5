"""What a rank may do instead: the watchdog of each of the others names it, and raises where it waits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.lockstep.postmortem.explain import explain
from tests.esper.lockstep.watchdog.faults import (
    DISAGREEMENTS,
    FAULTS,
    GUILTY,
    SUSPECTED_AFTER,
    disagree,
    elsewhere,
)
from tests.esper.lockstep.watchdog.jobs import Job, job, take_away

LONG = pytest.mark.stress
USUAL = ("skips", "killed", "killed inside", "raises")


@pytest.fixture
def finished() -> Iterator[list[Job]]:
    """Jobs whose run folders are taken away afterwards."""
    jobs: list[Job] = []
    yield jobs
    for one in jobs:
        take_away(one)


def assert_explained(run: Path, folder: Path) -> None:
    """The files say what the living have said, and fewer of them name nobody else, for nothing else."""
    shutil.copytree(run, folder)  # without its verdict another job would sweep it
    verdict = json.loads((folder / "verdict.json").read_text())
    (wanted,) = verdict["diagnoses"]
    assert json.loads(json.dumps(explain(folder).report.to_json())) == verdict
    (folder / "verdict.json").unlink()
    ledgers = sorted(folder.glob("rank*.ledger"))
    for cut in (None, *ledgers):
        whole = b"" if cut is None else cut.read_bytes()
        if cut is not None:
            os.truncate(cut, len(whole) // 2)
        for found in explain(folder).report.diagnoses:
            assert set(found.guilty) <= set(wanted["guilty"]), found.message
            assert found.kind == wanted["kind"], found.message
        if cut is not None:
            cut.write_bytes(whole)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in USUAL else LONG) for name in FAULTS])
def test_a_rank_that_is_elsewhere_is_named_on_all(name: str, tmp_path: Path, finished: list[Job]) -> None:
    done = elsewhere(name, tmp_path)
    finished.append(done)
    assert (" died in all_reduce #21 " in done.said) == (name == "killed inside")
    (folder,) = done.run_folders
    assert_explained(folder, tmp_path / "kept")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "crossed groups" else LONG) for name in DISAGREEMENTS],
)
def test_ranks_that_disagree_raise(name: str, tmp_path: Path, finished: list[Job]) -> None:
    finished.append(disagree(name, tmp_path))


def test_action_exit_ends_with_its_status(tmp_path: Path, finished: list[Job]) -> None:
    done = job(
        tmp_path,
        """
        print("buffered", end="")
        if rank == 1:
            dist.broadcast(x, 0)
        elif rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(x)
        """,
        start="patience=3, action='exit'",
    )
    finished.append(done)
    assert done.statuses == (3, 3, 3)
    assert done.out == ("buffered",) * 3
    assert done.notes("error") == {}
    assert done.said.count("lockstep: ") == 1
    (folder,) = done.run_folders
    assert_explained(folder, tmp_path / "kept")


@pytest.mark.parametrize(
    "name", ["raises", *(pytest.param(name, marks=LONG) for name in ("killed", "exits 0", "sleeps"))]
)
def test_action_exit_ends_those_whose_call_has_failed_too(
    name: str, tmp_path: Path, finished: list[Job]
) -> None:
    fault = FAULTS[name]
    done = job(
        tmp_path,
        f"""
        dist.barrier()
        if rank == {GUILTY}:
            {fault.body}
        dist.all_reduce(x)
        """,
        start=f"patience={SUSPECTED_AFTER}, action='exit'",
    )
    finished.append(done)
    assert [status for rank, status in enumerate(done.statuses) if rank != GUILTY] == [3, 3]
    assert done.notes("error").keys() <= {GUILTY}
    assert done.said.count("lockstep: ") == 1
    (folder,) = done.run_folders
    (found,) = json.loads((folder / "verdict.json").read_text())["diagnoses"]
    assert (found["kind"], found["guilty"]) == (fault.kind, [GUILTY])
    assert_explained(folder, tmp_path / "kept")
