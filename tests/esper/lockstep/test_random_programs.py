"""Random small programs on real ranks: healthy ones are clean and bring the right numbers, faulty ones are
found out.

What is to be expected of a faulty one the reference says (`verdict`). Who is guilty is beyond doubt (`guilt`)

* alone, where all that is wrong is that the rank goes no further, or where it has entered another call than
  all the others of a group of three or more;
* perhaps among others, in any other contradiction or cycle of collectives: two ranks that contradict each
  other are both named, and so are all of a cycle in which nobody has a majority against him;
* not at all where ranks wait in sends or receives: who names the wrong peer can't be told from who forgot to
  serve the right one. Nor where it depends on the backend's buffers whether ranks wait, and a call too many
  can't be told from one that those left out whose program is over.

A rank that ends or stops while a call of its is under way in the background (`in_flight`) may take those down
with it who have entered the same: the reference doesn't know how far the data are, so either end is right.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.esper.lockstep.launching import warm_command
from tests.esper.lockstep.machine import ANY, Issue, Run, State, entered, place_of, standstills, waits
from tests.esper.lockstep.random_programs import Faulty, Kinds, always_completes, faulty, healthy, verdict

HERE = Path(__file__).parent
WORLD = 4


def healthy_programs(count: int, first: int = 0) -> list[tuple[int, Run]]:
    """Of all sizes, each with its seed; the reference confirms that they are healthy."""
    found: list[tuple[int, Run]] = []
    seed = first
    while len(found) < count:
        run = healthy(random.Random(seed), Kinds(objects=True))
        if always_completes(run):
            found.append((seed, run))
        seed += 1
    return found


def faulty_programs(first: int = 0) -> Iterator[tuple[int, Faulty]]:
    for seed in range(first, first + 100_000):
        randomness = random.Random(seed)
        run = healthy(randomness)
        if always_completes(run) and (found := faulty(randomness, run)) is not None:
            yield seed, found


def are_clean(folder: Path, programs: list[tuple[int, Run]]) -> None:
    (folder / "programs").write_bytes(pickle.dumps(programs))
    report = folder / "report.json"
    options = ["--nproc", str(WORLD), "--report", str(report), "--patience", "20"]
    script = [str(HERE / "program_many.py"), str(folder / "programs")]
    done = warm_command(*options, "--", *script)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert json.loads(report.read_text())["diagnoses"] == []
    wanted = [(str(rank), str(len(programs))) for rank in range(WORLD)]
    assert sorted(re.findall(r"DONE (\d) (\d+)", done.stdout)) == wanted, told


def are_found_out(folder: Path, faults: list[tuple[int, Faulty]]) -> None:
    programs = [(seed, fault.run, False) for seed, fault in faults]
    (folder / "programs").write_bytes(pickle.dumps(programs))
    reports = folder / "reports"
    done = subprocess.run(
        [sys.executable, str(HERE / "program_each.py"), str(folder / "programs"), str(reports)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wrong = []
    for (seed, fault), line in zip(faults, reports.read_text().splitlines(), strict=True):
        report = json.loads(line)
        if (complaint := judged(fault, report)) is not None:
            wrong.append((seed, complaint, fault, report["verdict"], report["diagnoses"]))
    assert wrong == []


def judged(fault: Faulty, report: dict[str, Any]) -> str | None:
    """What is wrong with a report on this fault; None where nothing is."""
    found, named = report["verdict"], {rank for one in report["diagnoses"] for rank in one["guilty"]}
    expected = verdict(fault.run)
    if found == "diverged":
        if expected == "complete" and not (fault.ends and named == {fault.rank}):
            return "accused, though it comes to its end"
        (diagnosis,) = report["diagnoses"]
        too_many = diagnosis["kind"] == "missing" and fault.rank in diagnosis["waiting"]["ranks"]
        sure = "open" if too_many else guilt(fault)
        if (sure == "alone" and named != {fault.rank}) or (sure == "among" and fault.rank not in named):
            return f"{sorted(named)} named, and not {fault.rank} {sure}"
        return None
    if expected == "doomed":
        return f"{found}, though it can't come to its end"
    # By itself, and unnoticed by the others: its status is not 0, or it is left stopped.
    allowed = {"fail": "failed", "kill": "failed", "stop": "stopped"}.get(fault.how, "clean")
    return (
        None if expected == "open" or found in (allowed, "clean") else f"{found}, though it comes to its end"
    )


def guilt(fault: Faulty) -> str:
    """`alone`, `among` others perhaps, or `open`."""
    if verdict(fault.run) == "open":
        return "open"
    found = {_guilt(fault, end) for eager in (True, False) for end in _ends(fault.run, eager)}
    return found.pop() if len(found) == 1 else "open" if "open" in found else "among"


def _ends(run: Run, eager: bool) -> set[State]:
    return standstills(replace(run, eager=eager))


def _guilt(fault: Faulty, end: State) -> str:
    run, places = fault.run, list(entered(fault.run, end))
    waiting = [run.call(place) for place in waits(end)]
    if any(call.peer == ANY or (call.peer != -1 and not fault.ends) for call in waiting):
        return "open"
    if fault.ends:
        return "alone"
    contradicted: dict[object, dict[int, Issue]] = {}
    for place in places:
        call = run.call(place)
        if call.peer == -1:
            said = replace(call, waits=True, mark=0)
            contradicted.setdefault(place_of(run, place), {})[place[0]] = said
    sides = [calls for calls in contradicted.values() if len({_told(one) for one in calls.values()}) > 1]
    if len(sides) == 1 and len(sides[0]) > 2 and fault.rank in sides[0]:
        (calls,) = sides
        others = {_told(one) for rank, one in calls.items() if rank != fault.rank}
        members = run.members(calls[fault.rank].group)
        if (
            len(others) == 1
            and len(calls) == len(members)
            and None not in {one.name for one in calls.values()}
        ):
            return "alone"
    return "among"


def _told(call: Issue) -> Issue:
    return replace(call, dtype="", elements=0) if call.op == "barrier" else call


def some_of_each(count: int) -> list[tuple[int, Faulty]]:
    """The first faulty programs of which the reference is sure, as many of each kind of fault."""
    by_how: dict[str, list[tuple[int, Faulty]]] = {}
    most = -(-count // 8)
    for seed, fault in faulty_programs():
        known = by_how.setdefault(fault.how, [])
        wanted = "complete" if fault.how == "unwaited" else "doomed"
        if fault.how != "leave" and len(known) < most and verdict(fault.run) == wanted:
            known.append((seed, fault))
        if sum(map(len, by_how.values())) >= count:
            break
    return [one for several in by_how.values() for one in several]


def test_healthy_programs_are_clean(tmp_path: Path) -> None:
    are_clean(tmp_path, healthy_programs(40))


def test_faulty_programs_are_found_out(tmp_path: Path) -> None:
    are_found_out(tmp_path, some_of_each(8))


@pytest.mark.stress
@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_a_thousand_healthy_programs_are_clean(tmp_path: Path, first: int) -> None:
    are_clean(tmp_path, healthy_programs(100, 10 * first))


@pytest.mark.stress
@pytest.mark.parametrize("first", range(0, 4000, 1000))
def test_faulty_programs_at_length(tmp_path: Path, first: int) -> None:
    programs = faulty_programs(first)
    are_found_out(tmp_path, [next(programs) for _ in range(50)])
