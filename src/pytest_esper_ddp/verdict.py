"""Holds a run against what its test expects: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esper.lockstep.diagnosis import Diagnosis, ranks_text
from pytest_esper_ddp.markers import BY_PROGRAM, SUSPECTED
from pytest_esper_ddp.scenario import Expectation, Scenario
from pytest_esper_ddp.wire.messages import Failure

# From the fault firing to the diagnosis, where the marker says nothing: seconds.
_WITHIN_PROVED = 1.0
_WITHIN_AFTER_PATIENCE = 0.5


@dataclass(frozen=True)
class Observed:
    """What a run came to: the first diagnosis of lockstep, and each failed rank's first failure. Times in
    seconds.
    """

    diagnosis: Diagnosis | None
    decided_at: float
    failures: Mapping[int, Failure]
    fired: Mapping[int, float]
    ended_by: str | None
    started: float


@dataclass(frozen=True)
class Verdict:
    """Whether the expected outcome came; `outcome` and `guilty` are what did come, `problem` what is wrong
    with it.
    """

    passed: bool
    outcome: str
    guilty: tuple[int, ...]
    seconds: float | None
    problem: str = ""


@dataclass(frozen=True)
class _Event:
    """What came, in the terms of an expectation."""

    kind: str
    guilty: tuple[int, ...]
    at: float
    ops: tuple[str | None, ...] = ()
    tags: tuple[str | None, ...] = ()
    fields: tuple[str, ...] = ()


def judge(scenario: Scenario, observed: Observed) -> Verdict:
    """The verdict on a scenario with faults, with an expectation, or with both."""
    expected = scenario.expectation
    event = _event(expected, observed)
    first_fault = min(observed.fired.values(), default=observed.started)
    seconds = None if event is None else max(0.0, event.at - first_fault)
    outcome, guilty = ("healthy", ()) if event is None else (event.kind, event.guilty)
    unfired = [str(fault) for index, fault in enumerate(scenario.faults) if index not in observed.fired]
    if unfired:
        problem = f"inconclusive: the fault never fired: {'; '.join(unfired)}"
    elif expected is None:
        problem = ""  # faults alone: the test must end healthy, which its reports decide
    elif event is None:
        problem = f"expected {_told(expected)}, but " + _nothing(observed)
    else:
        problem = _difference(scenario, expected, event, observed, seconds or 0.0)
    return Verdict(not problem, outcome, guilty, seconds, problem)


def _event(expected: Expectation | None, observed: Observed) -> _Event | None:
    """The event that counts: the program's own where that is expected, lockstep's otherwise."""
    if expected is not None and expected.kind in BY_PROGRAM and observed.failures:
        return _program_event(expected.kind, observed)
    diagnosis = observed.diagnosis
    if diagnosis is not None:
        places = diagnosis.guilty_at.values()
        return _Event(
            diagnosis.kind,
            diagnosis.guilty,
            observed.decided_at,
            (diagnosis.waiting.op, *(at.op for at in places)),
            (diagnosis.waiting.tag, *(at.tag for at in places)),
        )
    if observed.failures:
        return _program_event("failed", observed)
    return None


def _program_event(expected: str, observed: Observed) -> _Event:
    """What the ranks themselves said. `deadline` and `monitored_barrier` are two sides of one exception."""
    first = min(observed.failures.values(), key=lambda failure: failure.at)
    named = [failure for failure in observed.failures.values() if failure.guilty]
    guilty = min(named, key=lambda failure: failure.at).guilty if named else ()
    kind = first.kind or "failed"
    if expected == "monitored_barrier" and any(
        "monitoredBarrier" in one.text for one in observed.failures.values()
    ):
        kind = "monitored_barrier"
    last = max(failure.at for failure in observed.failures.values())
    return _Event(kind, guilty, last, fields=tuple(field for one in named for field in one.fields))


def _difference(
    scenario: Scenario, expected: Expectation, event: _Event, observed: Observed, seconds: float
) -> str:
    """What is not as expected; empty when all is."""
    if event.kind != expected.kind:
        return f"expected {_told(expected)}, got {event.kind} of {_ranks(event.guilty)}"
    if expected.guilty is not None and expected.guilty != tuple(sorted(event.guilty)):
        return f"expected {_told(expected)}, got {event.kind} of {_ranks(event.guilty)}"
    for name, wanted, had in (("op", expected.op, event.ops), ("tag", expected.tag, event.tags)):
        if wanted is not None and wanted not in had:
            came = sorted({str(one) for one in had if one}) or ["none"]
            return f"expected {name} {wanted!r}, got {', '.join(came)}"
    if expected.field is not None and not any(expected.field in field for field in event.fields):
        return f"expected field {expected.field!r}, got {', '.join(event.fields) or 'none'}"
    problem = _wrong_exceptions(scenario, expected, event, observed)
    if problem:
        return problem
    within = expected.within if expected.within is not None else _default_within(scenario, expected)
    if within is not None and seconds > within:
        return f"{event.kind} came {seconds:.2f} s after the fault; expected within {within:g} s"
    return ""


def _default_within(scenario: Scenario, expected: Expectation) -> float | None:
    if expected.kind in BY_PROGRAM:
        return None  # the program's own deadline is not ours to know
    return scenario.patience + _WITHIN_AFTER_PATIENCE if expected.kind in SUSPECTED else _WITHIN_PROVED


def _wrong_exceptions(scenario: Scenario, expected: Expectation, event: _Event, observed: Observed) -> str:
    """`raises`, and for what the program says itself: that every rank which is not guilty says it, and
    alike.
    """
    if expected.kind in BY_PROGRAM:
        needed = set(range(scenario.world_size)) - set(event.guilty)
        silent = sorted(needed - observed.failures.keys())
        if silent:
            return f"{event.kind} was raised, but not on {_ranks(silent)}"
        unnamed = sorted(rank for rank in needed if set(observed.failures[rank].guilty) != set(event.guilty))
        if unnamed:
            return f"{event.kind} names {_ranks(event.guilty)}, but not on {_ranks(unnamed)}"
    if expected.raises is None:
        return ""
    wanted = (
        expected.raises
        if isinstance(expected.raises, Mapping)
        else dict.fromkeys(sorted(set(range(scenario.world_size)) - set(event.guilty)), expected.raises)
    )
    for rank, error in wanted.items():
        failure = observed.failures.get(rank)
        name = f"{error.__module__}.{error.__qualname__}"
        if failure is None or name not in failure.bases:
            return (
                f"expected {error.__name__} on rank {rank}, got {failure.type if failure else 'no exception'}"
            )
    return ""


def _nothing(observed: Observed) -> str:
    if observed.ended_by == "timeout":
        return "nothing was diagnosed before the test's time-out"
    return "the run ended healthy"


def _told(expected: Expectation) -> str:
    return expected.kind + (f" of {_ranks(expected.guilty)}" if expected.guilty else "")


def _ranks(ranks: tuple[int, ...] | list[int]) -> str:
    return ranks_text(ranks) if ranks else "no rank"
