"""What a run on ranks came to, as plain data that travels with the item's reports: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytest_esper_ddp.controller.merge import first_failure
from pytest_esper_ddp.controller.run import Run
from pytest_esper_ddp.declared import ROW
from pytest_esper_ddp.scenario import Scenario
from pytest_esper_ddp.verdict import Verdict


@dataclass(frozen=True)
class Row:
    """One line of the summary's table."""

    name: str
    faults: str
    outcome: str
    guilty: str
    seconds: str
    passed: bool
    notes: Sequence[str]


def give_account(reports: Sequence[Any], scenario: Scenario, run: Run, verdict: Verdict | None) -> None:
    """Put the properties and, where the table is to have one, the row into the item's reports."""
    passed = not any(report.failed for report in reports)
    theirs = (
        one
        for _, outcome in sorted(run.outcomes.items())
        for data in outcome.reports
        for one in data.get("user_properties", ())
    )
    every = [*_unequal(theirs), *_properties(scenario, run, verdict, passed=passed)]
    for report in reports:
        report.user_properties = every  # JUnit's file shows those of the last phase
    row = _row(reports[-1].nodeid, scenario, run, verdict, passed=passed)
    if row is not None:
        setattr(reports[-1], ROW, asdict(row))


def row_in(report: Any) -> Row | None:
    """The row that a report carries, in whichever process it was made."""
    data = getattr(report, ROW, None)
    return None if data is None else Row(**data)


def _row(nodeid: str, scenario: Scenario, run: Run, verdict: Verdict | None, *, passed: bool) -> Row | None:
    notes = dict.fromkeys(note for _, outcome in sorted(run.outcomes.items()) for note in outcome.notes)
    if verdict is None and not notes:
        return None
    shown = verdict or Verdict(passed, "healthy" if passed else "failed", (), run.ended - run.started)
    return Row(
        name=nodeid.rpartition("::")[2].removeprefix("test_"),
        faults="; ".join(map(str, scenario.faults)) or "none",
        outcome=shown.outcome if passed else f"FAILED: {shown.outcome}",
        guilty=_ranks(shown.guilty) or "-",
        seconds="-" if shown.seconds is None else f"{shown.seconds:.2f}",
        passed=passed,
        notes=list(notes),
    )


def _properties(
    scenario: Scenario, run: Run, verdict: Verdict | None, *, passed: bool
) -> list[tuple[str, str]]:
    """World size and seconds of every run; kind and rank of what went wrong in it, expected or not."""
    seconds = run.ended - run.started
    if verdict is not None and verdict.seconds is not None:
        seconds = verdict.seconds  # from the fault to the diagnosis, as the table has it
    kind, ranks = (verdict.outcome, verdict.guilty) if verdict is not None else _trouble(run, passed=passed)
    found = [("ddp_world_size", str(scenario.world_size)), ("ddp_kind", kind)]
    if ranks:
        found.append(("ddp_rank", _ranks(ranks)))
    return [*found, ("ddp_seconds", f"{seconds:.3f}")]


def _trouble(run: Run, *, passed: bool) -> tuple[str, Sequence[int]]:
    failures = {rank: one.failure for rank, one in run.outcomes.items() if one.failure is not None}
    if run.diagnosis is not None:
        return run.diagnosis.kind, run.diagnosis.guilty
    if passed:
        return "healthy", ()
    if run.why_ended == "timeout":
        return "timeout", sorted(run.unfinished)
    if failures:
        return "failed", [first_failure(failures)]
    if run.exits:
        return "exited", sorted(run.exits)
    return "disagreed", ()


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _unequal(properties: Any) -> list[tuple[str, Any]]:
    """What ranks have recorded themselves; once what reads alike, since not every value can be compared."""
    return list({(name, str(value)): (name, value) for name, value in properties}.values())
