"""The proof against a reference: whatever the ranks do, nobody is accused who can still go on, and nobody who
can't is left unnamed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from esper.lockstep.finding import SUSPECTED, Patience
from tests.esper.lockstep.machine import (
    Await,
    Fail,
    Instruction,
    Issue,
    Leave,
    Run,
    State,
    Step,
    Telling,
    abandoned,
    awaited,
    completes,
    contradicted,
    start,
    steps,
)

GROUPS: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"b": (0, 1)},
    3: {"b": (0, 1), "c": (1, 2)},
    4: {"b": (0, 1, 2), "c": (1, 3)},
}
SHORT = Patience(running=2.0, stopped=0.5)


@dataclass(frozen=True)
class Faulty:
    """A run that is healthy but for what was done to `rank`."""

    run: Run
    rank: int


@st.composite
def healthy(draw: st.DrawFn, most_calls: int = 5) -> Run:
    """Calls in one order for all ranks, so that they can't deadlock; some are waited in later."""
    size = draw(st.integers(2, 4))
    groups = GROUPS[size]
    programs: list[list[Instruction]] = [[] for _ in range(size)]
    for _ in range(draw(st.integers(1, most_calls))):
        if draw(st.integers(0, 3)) == 0:
            one, other = draw(st.permutations(list(range(size))))[:2]
            enter(draw, programs[one], Issue("send", peer=other))
            enter(draw, programs[other], Issue("recv", peer=one))
            continue
        group = draw(st.sampled_from(["default", *groups]))
        op = draw(st.sampled_from(["all_reduce", "barrier", "broadcast"]))
        members = groups.get(group, tuple(range(size)))
        root = draw(st.integers(0, len(members) - 1)) if op == "broadcast" else -1
        for rank in members:
            enter(draw, programs[rank], Issue(op, group, root))
    for program in programs:
        waited = {one.index for one in program if isinstance(one, Await)}
        left = [
            index
            for index, one in enumerate(program)
            if isinstance(one, Issue) and not one.waits and index not in waited
        ]
        program.extend(Await(index) for index in left)
    return Run(tuple(map(tuple, programs)), groups, eager=draw(st.booleans()), breaks=draw(st.booleans()))


def enter(draw: st.DrawFn, program: list[Instruction], call: Issue) -> None:
    how = draw(st.sampled_from(["sync", "sync", "sync", "async", "native", "await first"]))
    if how in ("async", "native"):
        call = replace(call, waits=False, native=how == "native" and call.peer < 0)
    elif how == "await first":
        program.extend(Await(index) for index in pending(program)[:1])
    program.append(call)


def pending(program: list[Instruction]) -> list[int]:
    """The asynchronous calls that are not waited in yet."""
    waited = {one.index for one in program if isinstance(one, Await)}
    return [
        index
        for index, one in enumerate(program)
        if isinstance(one, Issue) and not one.waits and index not in waited
    ]


@st.composite
def ended_early(draw: st.DrawFn) -> Faulty:
    run = draw(healthy())
    rank = draw(st.integers(0, len(run.programs) - 1))
    kept = run.programs[rank][: draw(st.integers(0, len(run.programs[rank])))]
    ends: list[tuple[Instruction, ...]] = [(), (Fail(),), (Leave(),)]
    end = draw(st.sampled_from(ends))
    return Faulty(_with(run, rank, (*kept, *end)), rank)


@st.composite
def reordered(draw: st.DrawFn) -> Faulty:
    """One rank leaves a call out, does two in the other order, or does another one in its place."""
    run = draw(healthy())
    rank = draw(st.integers(0, len(run.programs) - 1))
    # Without the awaits, whose indices would shift.
    calls = [replace(one, waits=True, native=False) for one in run.programs[rank] if isinstance(one, Issue)]
    if calls:
        at = draw(st.integers(0, len(calls) - 1))
        how = draw(st.sampled_from(["skip", "swap", "other"]))
        if how == "skip":
            del calls[at]
        elif how == "swap":
            calls[at - 1], calls[at] = calls[at], calls[at - 1]
        elif calls[at].peer < 0:
            calls[at] = replace(calls[at], op="all_gather", root=-1)
    return Faulty(_with(run, rank, tuple(calls)), rank)


def _with(run: Run, rank: int, program: tuple[Instruction, ...]) -> Run:
    return replace(run, programs=(*run.programs[:rank], program, *run.programs[rank + 1 :]))


def walk(run: Run, randomness: random.Random, check: Callable[[Telling], None]) -> Telling:
    """One interleaving to its end, checked at every state on the way."""
    told = Telling(run)
    check(told)
    while options := told.options():
        told.take(randomness.choice(options)[0])
        check(told)
    return told


def every_state(run: Run, most: int, check: Callable[[Telling], None]) -> int:
    """Check every state that can be reached, `most` at most."""
    paths: dict[State, list[Step]] = {start(run): []}
    todo = [start(run)]
    while todo and len(paths) < most:
        state = todo.pop()
        for step, following in steps(run, state):
            if following not in paths:
                paths[following] = [*paths[state], step]
                todo.append(following)
    for path in paths.values():
        told = Telling(run)
        told.follow(path)
        check(told)
    return len(paths)


def accuses_nobody(told: Telling) -> None:
    finding = told.story.prove()
    assert finding is None, finding


def is_just(told: Telling) -> None:
    """What can still complete, without anybody whose program is over, is not accused."""
    if not (told.broken or abandoned(told.run, told.state)) and completes(told.run, told.state):
        accuses_nobody(told)


def is_named(told: Telling) -> None:
    """At a standstill: somebody is named, and proved where all that matters is known."""
    stuck = [rank for rank, at in enumerate(told.state) if not at.gone]
    if not stuck:
        return
    finding = told.story.prove(later=5.0, patience=SHORT)
    assert finding is not None
    assert finding.guilty
    event(finding.kind)
    if not contradicted(told.run, told.state) and told.run.eager:
        proved = told.story.prove()
        assert proved is not None
        assert proved.kind not in SUSPECTED
        dead = {
            peer
            for rank in stuck
            if (index := told.state[rank].waits_in) is not None
            for peer in awaited(told.run, told.state, rank, index)
            if told.state[peer].gone
        }
        assert (proved.kind in ("wait_cycle", "peer")) is not bool(dead)


def names_only(rank: int) -> Callable[[Telling], None]:
    def check(told: Telling) -> None:
        for finding in (told.story.prove(), told.story.prove(later=5.0, patience=SHORT)):
            assert finding is None or finding.kind in SUSPECTED or finding.guilty.keys() == {rank}, finding
        told.story.now -= 5.0

    return check


def both(one: Callable[[Telling], None], other: Callable[[Telling], None]) -> Callable[[Telling], None]:
    def check(told: Telling) -> None:
        one(told)
        other(told)

    return check


QUICK = settings(max_examples=60, deadline=None)
FEW = settings(max_examples=15, deadline=None)
MANY = settings(max_examples=300, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def check_healthy(run: Run, seed: int) -> None:
    told = walk(run, random.Random(seed), accuses_nobody)
    assert all(at.gone for at in told.state)
    assert told.story.prove(final=True) is None


def check_faulty(faulty: Faulty, seed: int, *, alone: bool) -> None:
    check = both(is_just, names_only(faulty.rank)) if alone else is_just
    told = walk(faulty.run, random.Random(seed), check)
    is_named(told)


@given(healthy(), seeds)
@QUICK
def test_a_healthy_run_is_never_accused(run: Run, seed: int) -> None:
    check_healthy(run, seed)


@given(healthy(most_calls=2))
@FEW
def test_a_healthy_run_is_accused_in_no_state_at_all(run: Run) -> None:
    every_state(run, 200, accuses_nobody)


@given(ended_early(), seeds)
@QUICK
def test_a_rank_that_ends_early_is_named_alone(faulty: Faulty, seed: int) -> None:
    check_faulty(faulty, seed, alone=True)


@given(reordered(), seeds)
@QUICK
def test_a_rank_that_does_something_else_leaves_nobody_unnamed(faulty: Faulty, seed: int) -> None:
    check_faulty(faulty, seed, alone=False)


@pytest.mark.stress
@given(healthy(), seeds)
@MANY
def test_healthy_runs_at_length(run: Run, seed: int) -> None:
    check_healthy(run, seed)
    every_state(run, 100, accuses_nobody)


@pytest.mark.stress
@given(ended_early(), seeds)
@MANY
def test_early_ends_at_length(faulty: Faulty, seed: int) -> None:
    check_faulty(faulty, seed, alone=True)
    every_state(faulty.run, 100, is_just)


@pytest.mark.stress
@given(reordered(), seeds)
@MANY
def test_other_calls_at_length(faulty: Faulty, seed: int) -> None:
    check_faulty(faulty, seed, alone=False)
    every_state(faulty.run, 100, is_just)
