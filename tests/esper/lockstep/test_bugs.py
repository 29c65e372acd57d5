"""Reproductions of real bugs: lockstep names the guilty rank, the operation and the line on both sides, and
calls each program's healthy twin clean.

The comments before a script say what is right: `guilty` has the sets of ranks that may be blamed, `opA` and
`opB` what the innocent and the guilty are in, `expect` the kinds. `# A` and `# B` mark the lines of the two.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.esper.lockstep.launching import SCHEMA, started, warm_command

BUGS = Path(__file__).parent / "bugs"
# Seconds that a run may take on a loaded machine.
_LONGEST = 150.0
# Seconds from where the records decide to the diagnosis.
WITHIN = 0.25
_HELD_STATE = ("drift", "model")  # no call differs, but what the ranks hold
_SPELT = {
    "isend": "send",
    "irecv": "recv",
    "all_gather_into_tensor": "all_gather",
    "all_to_all_single": "all_to_all",
    "reduce_scatter_tensor": "reduce_scatter",
}
_QUICK = (
    "07_gather_on_the_main_process",
    "13_destroys_the_group_in_finally",
    "22_ring_sends_to_the_wrong_neighbour",
    "31_two_against_one_in_two_groups",
    "45_the_best_rank_by_its_own_account",
    "69_not_waited_for",
)


@dataclass(frozen=True)
class Bug:
    """One script and what its comments say of it."""

    path: Path
    ranks: int
    guilty: tuple[frozenset[int], ...]
    op_a: frozenset[str]
    op_b: frozenset[str]
    kinds: frozenset[str]
    names: tuple[str, ...]
    lines_a: frozenset[int]
    lines_b: frozenset[int]

    @property
    def accused(self) -> frozenset[int]:
        """All who may be named guilty."""
        return frozenset().union(*self.guilty)


def _bug(path: Path) -> Bug:
    text = path.read_text()
    meta = " ".join(line for line in text.splitlines() if line.startswith("# META"))
    said = dict(re.findall(r"(\w+)=(\S+)", meta))
    return Bug(
        path,
        int(said["ws"]),
        tuple(frozenset(map(int, ranks.split(","))) for ranks in said["guilty"].split("|")),
        frozenset(said["opA"].split("|")),
        frozenset(said["opB"].split("|")),
        frozenset(said["expect"].split("|")),
        tuple(said.get("name", "").split("|")) if "name" in said else (),
        _marked(text, "A"),
        _marked(text, "B"),
    )


def _marked(text: str, mark: str) -> frozenset[int]:
    """The lines of the statements whose comment has this mark; of one with a body, those of its header."""
    statements: list[range] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else (node.end_lineno or node.lineno)
            statements.append(range(node.lineno, last + 1))
    found: set[int] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(rf"#(?: [AB])* {mark}(?: [AB])*$", line):
            innermost: range = min((one for one in statements if number in one), key=len)
            found |= set(innermost)
    return frozenset(found)


ALL = [_bug(path) for path in sorted(BUGS.glob("[0-9]*.py"))]
PARAMETERS = [
    pytest.param(bug, id=bug.path.stem, marks=() if bug.path.stem in _QUICK else (pytest.mark.stress,))
    for bug in ALL
]


@pytest.mark.parametrize("bug", PARAMETERS)
def test_the_bug_is_found(bug: Bug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTHY", "0")
    status, report, told = _run(bug, tmp_path, patience=3)
    assert report["verdict"] == "diverged", told
    assert status == 3
    (found,) = report["diagnoses"]
    lapses = list(_lapses(bug, found))
    assert lapses == [], f"{json.dumps(found, indent=1)}\n{told}"


@pytest.mark.stress  # the zoo has healthy programs enough for every day
@pytest.mark.parametrize("bug", ALL, ids=lambda bug: bug.path.stem)
def test_its_healthy_twin_is_clean(bug: Bug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTHY", "1")
    status, report, told = _run(bug, tmp_path, patience=10)
    assert report["diagnoses"] == [], told
    assert (status, report["verdict"]) == (0, "clean"), told
    ranks = re.findall(r"DONE (\d+)", told)
    assert sorted(map(int, ranks)) == list(range(bug.ranks)), told


def _run(bug: Bug, folder: Path, *, patience: float) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and output of one run."""
    path = folder / "report.json"
    options = ("--nproc", str(bug.ranks), "--patience", str(patience), "--report", str(path))
    if bug.path.stem in _QUICK:
        done = warm_command(*options, "--", str(bug.path), within=_LONGEST)
        status, told = done.returncode, done.stdout + done.stderr
    else:
        with started(*options, "--", str(bug.path)) as process:
            told = "".join(process.communicate(timeout=_LONGEST))
        status = process.returncode
    report = json.loads(path.read_text())
    jsonschema.validate(report, SCHEMA)
    return status, report, told


def _lapses(bug: Bug, found: dict[str, Any]) -> list[str]:
    """What is wrong with this diagnosis."""
    guilty, places = set(found["guilty"]), found["guilty_at"]
    state = found["kind"] in _HELD_STATE
    wrong = []
    if found["kind"] not in bug.kinds:
        wrong.append(f"kind {found['kind']}, not {sorted(bug.kinds)}")
    if (guilty | set(map(int, places))) - bug.accused:
        wrong.append(f"innocent rank among {sorted(guilty)}")
    if guilty not in bug.guilty:
        wrong.append(f"guilty {sorted(guilty)}, not {[sorted(one) for one in bug.guilty]}")
    if found["seconds"] > WITHIN:
        wrong.append(f"{found['seconds']} s after it was decidable")
    return wrong + (_lapses_of_state(bug, found["message"]) if state else _lapses_of_calls(bug, found))


def _lapses_of_state(bug: Bug, message: str) -> list[str]:
    wrong = []
    if bug.names and not any(name in message for name in bug.names):
        wrong.append(f"the message names none of {bug.names}")
    lines = {int(line) for line in re.findall(rf"{re.escape(bug.path.name)}:(\d+)", message)}
    if not lines & (bug.lines_a | bug.lines_b):
        wrong.append("the message has no marked line")
    return wrong


def _lapses_of_calls(bug: Bug, found: dict[str, Any]) -> list[str]:
    waiting, places = found["waiting"], found["guilty_at"]
    wrong = [] if places else ["no word on where the guilty rank is"]
    if _op(waiting["op"]) not in bug.op_a:
        wrong.append(f"the innocent are in {waiting['op']}, not {sorted(bug.op_a)}")
    if not _at(waiting["site"], bug, bug.lines_a):
        wrong.append(f"the innocent are at {waiting['site']}, not {sorted(bug.lines_a)}")
    for rank, place in places.items():
        if _op(place["op"]) not in bug.op_b:
            wrong.append(f"rank {rank} is in {place['op']}, not {sorted(bug.op_b)}")
        if not _at(place["site"], bug, bug.lines_b):
            wrong.append(f"rank {rank} is at {place['site']}, not {sorted(bug.lines_b)}")
    return wrong


def _op(name: str | None) -> str:
    return "none" if name is None else _SPELT.get(name, name)


def _at(site: str | None, bug: Bug, lines: frozenset[int]) -> bool:
    return site is not None and site in {f"{bug.path}:{line}" for line in lines}
