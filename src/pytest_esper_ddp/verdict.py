"""Holds a run against what its test expects: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.lockstep.proof.finding import SUSPECTED, ranks_text
from esper.lockstep.report.diagnosis import Diagnosis
from pytest_esper_ddp.markers import BY_PROGRAM, OF_CALLS
from pytest_esper_ddp.scenario import Expectation, Scenario
from pytest_esper_ddp.wire.messages import Failure

# From the fault firing to the diagnosis, where the marker says nothing: seconds.
_WITHIN_PROVED = 1.0
_WITHIN_AFTER_PATIENCE = 0.5


@dataclass(frozen=True)
class Observed:
    """What a run came to. Times in seconds.

    Lockstep's first diagnosis, each failed rank's first failure, the status of each rank that ended.
    """

    diagnosis: Diagnosis | None
    decided_at: float
    failures: Mapping[int, Failure]
    fired: Mapping[int, float]
    ended_by: str | None
    started: float
    exits: Mapping[int, int] = field(default_factory=dict)


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
    outcome, guilty = _without_event(observed) if event is None else (event.kind, event.guilty)
    unfired = [str(fault) for index, fault in enumerate(scenario.faults) if index not in observed.fired]
    if unfired:
        problem = f"inconclusive: the fault never fired: {'; '.join(unfired)}"
    elif expected is None:
        came = (
            _nothing(observed)
            if event is None
            else f"got {outcome}" + (f" of {_ranks(guilty)}" if guilty else "")
        )
        problem = (
            "" if outcome == "healthy" else f"expected to end healthy, since nothing says ddp_expect; {came}"
        )
    elif event is None:
        problem = f"expected {_told(expected)}, but {_nothing(observed)}"
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
            diagnosis.fields,
        )
    if observed.failures:
        return _program_event("failed", observed)
    return None


def _program_event(expected: str, observed: Observed) -> _Event:
    """What the ranks themselves said. `deadline` and `monitored_barrier` are two sides of one exception."""
    failures = sorted(observed.failures.values(), key=lambda failure: failure.at)
    named = [failure for failure in failures if failure.guilty]
    guilty = named[0].guilty if named else ()
    # The guilty rank may well have failed first, by an error that names nothing.
    kind = next((failure.kind for failure in failures if failure.kind is not None), "failed")
    if expected == "monitored_barrier" and any("monitoredBarrier" in one.text for one in failures):
        kind = "monitored_barrier"
    fields = tuple(dict.fromkeys(name for one in named for name in one.fields))
    return _Event(kind, guilty, failures[-1].at, fields=fields)


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
    if expected.field is not None and not any(_means(expected, name) for name in event.fields):
        return f"expected field {expected.field!r}, got {', '.join(event.fields) or 'none'}"
    problem = _wrong_exceptions(scenario, expected, event, observed)
    if problem:
        return problem
    within = expected.within if expected.within is not None else _default_within(scenario, expected)
    if expected.within is None and within is not None and observed.diagnosis is not None:
        # The patience is with the rank, not with the machine, and not with the compiler.
        within += observed.diagnosis.starved + observed.diagnosis.compiled
    if within is not None and seconds > within:
        return f"{event.kind} came {seconds:.2f} s after the fault; expected within {within:g} s"
    return ""


def _means(expected: Expectation, name: str) -> bool:
    """Whether the expected field is this one: a name of a list, or a part of what a sentence names."""
    return expected.field == name if expected.kind in OF_CALLS else str(expected.field) in name


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
        unnamed = sorted(rank for rank in needed if not _says(observed.failures[rank], event))
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


def _says(failure: Failure, event: _Event) -> bool:
    """Whether a rank's own exception names what the event is."""
    if event.kind == "monitored_barrier":  # torch names the guilty on rank 0 only, and sends the others there
        return not failure.guilty or set(failure.guilty) == set(event.guilty)
    return failure.kind == event.kind and set(failure.guilty) == set(event.guilty)


def _without_event(observed: Observed) -> tuple[str, tuple[int, ...]]:
    if observed.exits:
        return "exited", tuple(sorted(observed.exits))
    return ("timeout" if observed.ended_by == "timeout" else "healthy"), ()


def _nothing(observed: Observed) -> str:
    if observed.exits:
        return f"{_ranks(sorted(observed.exits))} ended, which held nobody up"
    if observed.ended_by == "timeout":
        return "nothing was diagnosed before the test's time-out"
    return "the run ended healthy"


def _told(expected: Expectation) -> str:
    return expected.kind + (f" of {_ranks(expected.guilty)}" if expected.guilty else "")


def _ranks(ranks: tuple[int, ...] | list[int]) -> str:
    return ranks_text(ranks) if ranks else "no rank"
