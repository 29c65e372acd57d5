"""The proof against a reference: whatever the ranks do, nobody is accused who can still go on, and nobody who
can't is left unnamed.

Both directions, at the states that a run goes through: what is proved is doomed by the reference
(`is_just`), and where the reference stands still without having come to its end, somebody is named
(`is_named`): by proof, unless what is missing for one can't be known, and then at patience.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from esper.lockstep.proof.finding import SUSPECTED, Patience
from tests.esper.lockstep.machine import (
    ANY,
    Await,
    Fail,
    Instruction,
    Issue,
    Leave,
    Run,
    State,
    Step,
    abandoned,
    awaited,
    completes,
    contradicted,
    standstills,
    start,
    steps,
    waits,
)
from tests.esper.lockstep.program_telling import Telling
from tests.esper.lockstep.random_programs import (
    MOST_CALLS,
    Faulty,
    Kinds,
    always_completes,
    faulty,
    healthy,
)

SHORT = Patience(running=2.0, stopped=0.5)
ENDS = ("fail", "leave", "kill", "stop", "early")
OTHERS = ("drop", "swap", "unwaited", "change")


@st.composite
def choices(draw: st.DrawFn) -> random.Random:
    """From a seed, whose programs are of all kinds, or choice by choice, which can be shrunk."""
    return draw(st.randoms(use_true_random=draw(st.sampled_from([False, True, True, True]))))


@st.composite
def healthy_runs(draw: st.DrawFn, most_calls: int = MOST_CALLS) -> Run:
    run = healthy(draw(choices()), Kinds(native=draw(st.booleans())), most_calls)
    assume(always_completes(run))
    if run.helpers:  # a story holds one state of sleep a rank, not one a thread
        run = replace(run, programs=tuple(tuple(map(_seen, program)) for program in run.programs))
    return replace(run, eager=draw(st.booleans()), breaks=draw(st.booleans()))


def _seen(one: Instruction) -> Instruction:
    return replace(one, native=False) if isinstance(one, Issue) else one


@st.composite
def faulty_runs(draw: st.DrawFn, hows: tuple[str, ...]) -> Faulty:
    found = faulty(draw(choices()), draw(healthy_runs()), hows)
    assume(found is not None)
    assert found is not None
    return found


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
    """What can still come to its end, and holds no contradiction, is not accused."""
    run, state = told.run, told.state
    if not (contradicted(run, state) or abandoned(run, state)) and completes(run, state):
        accuses_nobody(told)


def is_named(told: Telling) -> None:
    """At a standstill: somebody is named, and proved where all that matters is known."""
    run, state = told.run, told.state
    waiting = waits(state)
    if not waiting:
        return
    finding = told.story.prove(later=5.0, patience=SHORT)
    assert finding is not None
    assert finding.guilty
    event(finding.kind)
    if not contradicted(run, state) and run.eager and not any(map(_doubtful, told.run.programs)):
        on_whom = {peer for place in waiting for peer in awaited(run, state, place)}
        dead = {rank for rank in on_whom if state.ranks[rank].gone}
        proved = told.story.prove()
        if not dead and (run.helpers or any(state.ranks[rank].stopped for rank in on_whom)):
            return  # another thread may come, or the one that is stopped go on
        if proved is None and any(map(told.may_be_elsewhere, waiting)):
            return  # which of its calls a thread of C++ waits in is not to be seen, so it may vote yet
        assert proved is not None
        assert proved.kind not in SUSPECTED
        assert (proved.kind in ("wait_cycle", "peer")) is not bool(dead)


def _doubtful(program: tuple[object, ...]) -> bool:
    """Which send a receive from any source took is not to be known."""
    return any(isinstance(one, Issue) and one.peer == ANY for one in program)


def _doubtful_run(run: Run) -> bool:
    """Whether it is open who waits for whom, or a rank that is stopped may wait at the same time."""
    native = any(isinstance(one, Issue) and one.native for program in run.programs for one in program)
    return native or bool(run.helpers) or any(map(_doubtful, run.programs))


def names_only(rank: int) -> Callable[[Telling], None]:
    """Nobody but the guilty one is proved so; where any source would have done, so are all who are over."""

    def check(told: Telling) -> None:
        for finding in (told.story.prove(), told.story.prove(later=5.0, patience=SHORT)):
            if finding is not None and finding.kind not in SUSPECTED:
                wild = any(entry.op == "recv" and entry.peer < 0 for entry in finding.waiting)
                assert rank in finding.guilty, finding
                assert wild or len(finding.guilty) == 1, finding
        told.story.now -= 5.0

    return check


def names_too(rank: int) -> Callable[[Telling], None]:
    """Among those that are proved guilty is the one that is, unless a send or receive has part in it: who
    names the wrong peer can't be told from who forgot to serve the right one. Nor can a call too many be told
    from one that those left out whose program is over.
    """

    def check(told: Telling) -> None:
        waiting = [told.run.call(place) for place in waits(told.state)]
        finding = told.story.prove() if all(call.peer == -1 for call in waiting) else None
        if finding is not None and not finding.group.startswith("p2p:"):
            too_many = finding.kind == "missing" and rank in {entry.rank for entry in finding.waiting}
            assert too_many or rank in finding.guilty, finding

    return check


def both(one: Callable[[Telling], None], other: Callable[[Telling], None]) -> Callable[[Telling], None]:
    def check(told: Telling) -> None:
        one(told)
        other(told)

    return check


QUICK = settings(max_examples=100, deadline=None)
FEW = settings(max_examples=15, deadline=None)
MANY = settings(max_examples=500, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def check_healthy(run: Run, seed: int) -> None:
    told = walk(run, random.Random(seed), accuses_nobody)
    assert all(at.gone for at in told.state.ranks)
    assert told.story.prove(final=True) is None


def check_faulty(fault: Faulty, seed: int, *, alone: bool) -> None:
    check = both(is_just, names_only(fault.rank) if alone else names_too(fault.rank))
    told = walk(fault.run, random.Random(seed), check)
    is_named(told)
    if fault.how == "stop" and waits(told.state) and not _doubtful_run(fault.run):
        finding = told.story.prove(patience=SHORT)
        assert finding is not None
        assert (finding.kind, list(finding.guilty)) == ("frozen", [fault.rank])


@given(healthy_runs(), seeds)
@QUICK
def test_a_healthy_run_is_never_accused(run: Run, seed: int) -> None:
    check_healthy(run, seed)


@given(healthy_runs(most_calls=2))
@FEW
def test_a_healthy_run_is_accused_in_no_state_at_all(run: Run) -> None:
    every_state(run, 200, accuses_nobody)


def test_who_sleeps_while_its_data_come_is_accused_in_no_state_at_all() -> None:
    """In C++ rank 0 waits for the first of its two calls from there, and the second is the one that lacks
    somebody.
    """
    mine = (
        Issue("broadcast", root=0, waits=False, native=True),
        Issue("reduce", "b", root=1, waits=False, native=True),
        Await(0),
        Issue("gather", "c", root=1),
        Await(1),
    )
    theirs = (
        Issue("broadcast", root=0, waits=False, native=True),
        Issue("gather", "c", root=1),
        Issue("reduce", "b", root=1),
        Await(0),
    )
    run = Run((mine, theirs), {"b": (0, 1), "c": (0, 1)}, eager=False)
    assert every_state(run, 1000, accuses_nobody) < 1000


@given(faulty_runs(ENDS), seeds)
@QUICK
def test_a_rank_that_ends_early_is_named_alone(fault: Faulty, seed: int) -> None:
    check_faulty(fault, seed, alone=True)


def test_who_failed_is_named_before_who_was_done_where_the_third_sender_is_held_up() -> None:
    """Rank 2 takes a message of anybody: 0 fails, 1 has nothing to send, and 3 waits for rank 2 itself."""
    from_any, to_two = Issue("recv", peer=ANY), Issue("send", "b", peer=2)
    programs = ((Fail(),), (), (from_any, Issue("recv", "b", peer=ANY)), (to_two,))
    run = Run(programs, {"b": (2, 3)})
    assert every_state(run, 100, names_only(0)) < 100


def test_who_failed_is_named_before_who_was_done_where_a_receive_from_anyone_broke() -> None:
    """Rank 0 takes two messages: 3 has sent its one and is done, and 2 fails before it sends the other."""
    from_any = Issue("recv", peer=ANY)
    mine = (replace(from_any, waits=False), from_any, Await(0))
    run = Run((mine, (), (Fail(),), (Issue("send", peer=0),)), breaks=True)
    for seed in range(50):  # the order in which two of them end matters, and leads to one state
        walk(run, random.Random(seed), names_only(2))


def test_who_left_is_named_before_who_was_brought_down_where_a_receive_from_anyone_is_held_up() -> None:
    """Rank 0 leaves without its send to 2; of that 1 breaks in the all_gather that 3 still waits in."""
    gather = Issue("all_gather")
    run = Run(((Leave(),), (gather,), (Issue("recv", peer=ANY), gather), (gather,)), breaks=True)
    for seed in range(50):
        walk(run, random.Random(seed), names_only(0))


@given(faulty_runs(OTHERS), seeds)
@QUICK
def test_a_rank_that_does_something_else_leaves_nobody_unnamed(fault: Faulty, seed: int) -> None:
    check_faulty(fault, seed, alone=False)


@st.composite
def beginnings(draw: st.DrawFn) -> Run:
    """Programs cut off somewhere, healthy or not, and such in which sends and receives race."""
    if draw(st.booleans()):
        run = draw(healthy_runs(most_calls=3))
        cut = tuple(tuple(one for one in program[:2] if isinstance(one, Issue)) for program in run.programs)
        return replace(run, programs=cut, helpers={}, breaks=False)
    receives = draw(st.lists(st.sampled_from([ANY, ANY, 1, 2]), min_size=1, max_size=3))
    sends = tuple((Issue("send", peer=0),) * draw(st.integers(1, 2)) for _ in range(2))
    return Run((tuple(Issue("recv", peer=source) for source in receives), *sends))


@given(beginnings())
@QUICK
def test_one_order_stands_for_all(run: Run) -> None:
    states, todo = {start(run)}, [start(run)]
    while todo and len(states) < 5000:
        following = [then for _, then in steps(run, todo.pop())]
        todo += [then for then in following if then not in states]
        states.update(following)
    assume(not todo)
    assert standstills(run) == {state for state in states if not steps(run, state)}


def test_programs_are_of_all_kinds() -> None:
    """What the properties above speak of is drawn, and the reference knows both answers."""
    seen: set[str] = set()
    for seed in range(400):
        randomness = random.Random(seed)
        run = healthy(randomness, Kinds(native=True))
        fault = faulty(randomness, run)
        seen |= {f"{len(run.programs)} ranks", f"{1 + len(run.groups)} groups"}
        seen |= {"second thread"} if run.helpers else set()
        for program in run.programs:
            calls = [one for one in program if isinstance(one, Issue)]
            seen |= {one.op for one in calls} | {f"{len(calls)} calls"}
            seen |= {"any source" for one in calls if one.peer == ANY}
            seen |= {"tag" for one in calls if one.tag} | {"async" for one in calls if not one.waits}
        if fault is not None:
            seen |= {fault.how, f"{fault.how} {completes(fault.run)}"}
    wanted = {"2 ranks", "3 ranks", "4 ranks", "1 groups", "2 groups", "3 groups", "6 calls", "second thread"}
    wanted |= {"any source", "tag", "async", "send", "recv", "all_gather", "scatter", *ENDS, *OTHERS}
    wanted |= {f"{how} {able}" for how in (*ENDS, *OTHERS) for able in (True, False)}
    assert wanted - seen <= {"unwaited False", "change True", "drop True"}, wanted - seen


@pytest.mark.stress
@given(healthy_runs(), seeds)
@MANY
def test_healthy_runs_at_length(run: Run, seed: int) -> None:
    check_healthy(run, seed)
    every_state(run, 100, accuses_nobody)


@pytest.mark.stress
@given(faulty_runs(ENDS), seeds)
@MANY
def test_early_ends_at_length(fault: Faulty, seed: int) -> None:
    check_faulty(fault, seed, alone=True)
    every_state(fault.run, 100, is_just)


@pytest.mark.stress
@given(faulty_runs(OTHERS), seeds)
@MANY
def test_other_calls_at_length(fault: Faulty, seed: int) -> None:
    check_faulty(fault, seed, alone=False)
    every_state(fault.run, 100, is_just)
