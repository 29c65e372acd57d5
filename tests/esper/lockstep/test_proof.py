"""What is proved of ranks that can't come or came with something else, and what must not be said."""

from __future__ import annotations

from itertools import pairwise

import pytest

from esper.lockstep.proof.finding import PRECEDENCE, Finding
from esper.lockstep.record.entry import Flag, Kind
from tests.esper.lockstep.story import ASYNC, TWO_SECONDS, Story, in_step


def cross_wait(story: Story, flags: Flag = Flag.WAITED) -> None:
    story.group("a", 0, 1)
    story.group("b", 0, 1)
    story.call(0, "all_reduce", "a", flags=flags)
    story.call(1, "all_reduce", "b")


# Healthy runs: nothing may be said, however long it takes.


def test_nothing_is_said_while_a_rank_is_on_its_way() -> None:
    story = in_step(3)
    story.call(0)
    story.call(1)
    assert story.found(later=1e6) is None


def test_a_rank_that_ends_after_its_last_collective_is_no_fault() -> None:
    story = in_step(2, 3)
    for rank in (0, 1):
        story.destroys(rank)
        story.ends_program(rank)
        story.ends_process(rank)
    assert story.found(final=True) is None


def test_who_does_not_wait_accuses_nobody() -> None:
    story = Story(2)
    story.call(0, flags=ASYNC)
    story.ends_process(1)
    assert story.found(later=10.0, patience=TWO_SECONDS, final=True) is None


def test_a_wait_that_is_not_stamped_yet_is_no_standstill() -> None:
    story = Story(3)
    story.call(0, "broadcast", root=0)
    story.call(1, "broadcast", root=0)
    story.group("pair", 1, 2)
    # Rank 1 has its data: only rank 2 has still to come, out of the pair's barrier.
    story.call(2, "barrier", "pair")
    assert story.found(later=1e6) is None


# crashed, raised, exited


@pytest.mark.parametrize(("code", "kind"), [(-9, "crashed"), (-11, "crashed"), (0, "exited"), (3, "exited")])
def test_a_process_that_is_gone(code: int, kind: str) -> None:
    story = in_step(3)
    story.call(0)
    story.call(1)
    story.ends_process(2, code)
    finding = story.prove()
    assert finding is not None
    assert (finding.kind, list(finding.guilty), finding.sequence) == (kind, [2], 1)
    assert sorted(entry.rank for entry in finding.waiting) == [0, 1]
    assert finding.since == pytest.approx(story.now)


def test_an_exception_that_left_the_program() -> None:
    story = Story(2)
    story.call(0)
    story.raises(1)
    finding = story.prove()
    assert finding is not None
    assert (finding.kind, list(finding.guilty)) == ("raised", [1])
    at = finding.guilty[1]
    assert at is not None
    assert (at.detail, str(at.site)) == ("ValueError: bad", "/raise.py:7")


def test_an_exception_beside_a_living_thread_is_none_until_the_end() -> None:
    story = Story(2)
    story.call(0)
    story.raises(1, leaves=False)
    assert story.found() is None
    story.ends_process(1, 1)
    assert story.found() == ("raised", [1])


def test_an_exit_with_handlers_still_to_run_is_none_until_the_end() -> None:
    story = Story(2)
    story.call(0)
    story.exits(1, leaves=False)
    assert story.found() is None
    story.ends_program(1)
    assert story.found() == ("exited", [1])


def test_an_exit_at_once_is_proved_before_the_process_is_gone() -> None:
    story = Story(2)
    story.call(0)
    story.exits(1, 7)
    finding = story.prove()
    assert finding is not None
    assert finding.kind == "exited"
    assert finding.guilty[1] is not None
    assert finding.guilty[1].detail == "status 7"


def test_the_first_event_names_the_kind_whenever_it_is_looked_at() -> None:
    story = Story(2)
    story.call(0)
    story.destroys(1)
    story.ends_program(1)
    early = story.found()
    story.ends_process(1)
    assert early == story.found() == ("missing", [1])


def test_records_of_an_end_without_their_text_still_end_the_rank() -> None:
    story = Story(2)
    story.call(0)
    story.write(1, Kind.RAISED)
    story.ends_process(1, 1)
    assert story.found() == ("raised", [1])


# missing


@pytest.mark.parametrize("how", ["destroys", "ends_program"])
def test_a_living_rank_that_can_issue_it_no_longer(how: str) -> None:
    story = in_step(3)
    story.call(0)
    story.call(2)
    getattr(story, how)(1)
    finding = story.prove()
    assert finding is not None
    assert (finding.kind, list(finding.guilty), finding.sequence) == ("missing", [1], 1)


def test_another_groups_end_is_not_this_ones() -> None:
    story = Story(2)
    story.group("pair", 0, 1)
    story.call(0)
    story.destroys(1, "pair")
    assert story.found() is None


def test_a_group_destroyed_in_finally_is_the_exceptions_doing() -> None:
    story = Story(2)
    story.call(0)
    story.destroys(1, error="ValueError: bad")
    assert story.found() == ("raised", [1])


def test_only_who_waits_for_it_is_said_to_wait() -> None:
    story = Story(4)
    story.point(0, "recv", 1)
    story.point(2, "recv", 3)
    story.ends_process(1, -9)
    finding = story.prove()
    assert finding is not None
    assert [entry.rank for entry in finding.waiting] == [0]


def test_who_leaves_together_is_named_together_and_in_time() -> None:
    story = Story(4)
    story.call(0)
    story.ends_program(1)
    assert story.found() is None  # ranks 2 and 3 may be about to leave
    story.ends_program(3)
    story.ends_program(2)
    assert story.found() == ("missing", [1, 2, 3])
    waits = Story(4)
    waits.call(0)
    waits.ends_program(1)
    assert waits.found(later=0.06) == ("missing", [1])


def test_nothing_after_a_contradiction_was_in_common() -> None:
    story = Story(2)
    for op in ("barrier", "all_reduce", "broadcast"):
        for rank in range(2):
            story.call(rank, op, elements=4 + (op == "all_reduce" and rank), flags=ASYNC)
    last = story.view.matching.last_settled("default")
    assert last is not None
    assert next(iter(last.entries.values())).op == "barrier"


def test_several_missing_from_one_collective_are_one_finding() -> None:
    story = Story(4)
    story.call(0)
    story.call(3)
    story.ends_program(1)
    story.ends_program(2)
    finding = story.prove()
    assert finding is not None
    assert sorted(finding.guilty) == [1, 2]
    assert sorted(entry.rank for entry in finding.waiting) == [0, 3]


# mismatch and order


@pytest.mark.parametrize(
    "other",
    [
        {"op": "broadcast", "root": 0},
        {"reduce_op": "MAX"},
        {"dtype": "float64"},
        {"elements": 5},
    ],
)
def test_a_majority_of_all_names_the_minority_at_once(other: dict[str, object]) -> None:
    story = Story(3)
    story.call(0)
    story.call(1)
    story.call(2, **other)  # type: ignore[arg-type]
    finding = story.prove()
    assert finding is not None
    assert (finding.kind, list(finding.guilty)) == ("mismatch", [2])


def test_roots_must_agree() -> None:
    story = Story(3)
    for rank in range(3):
        story.call(rank, "broadcast", root=int(rank == 1))
    assert story.found() == ("mismatch", [1])


def test_a_majority_of_those_who_have_come_is_none() -> None:
    story = Story(4)
    story.call(0)
    story.call(1)
    story.call(2, "barrier")
    # Rank 3 may side with rank 2.
    assert story.found() is None
    story.call(3, "barrier")
    assert story.found() == ("mismatch", [0, 1, 2, 3])


def test_two_ranks_are_both_named() -> None:
    story = Story(2)
    story.call(0)
    story.call(1, "barrier")
    assert story.found() == ("mismatch", [0, 1])


@pytest.mark.parametrize("end", ["process", "program", "wait"])
def test_a_vote_that_can_not_come_is_not_waited_for(end: str) -> None:
    story = Story(3)
    story.group("pair", 0, 2)
    story.call(0)
    story.call(1, "barrier")
    assert story.found() is None
    if end == "process":
        story.ends_process(2, -9)
    elif end == "program":
        story.ends_program(2)
    else:
        story.call(2, "barrier", "pair")  # it waits for rank 0, a party
    assert story.found() == ("mismatch", [0, 1])


def test_a_vote_that_another_thread_may_bring_is_waited_for() -> None:
    story = Story(3)
    story.group("pair", 0, 2)
    story.threads_of[2] = 2
    story.call(0)
    story.call(1, "barrier")
    story.call(2, "barrier", "pair")
    assert story.found() is None


def test_a_vote_that_one_of_two_blocked_threads_may_bring_is_waited_for() -> None:
    story = Story(4)
    story.threads_of[2] = 2
    for name, members in (("main", (0, 1, 2)), ("pair", (0, 2)), ("other", (2, 3))):
        story.group(name, *members)
    story.call(0, group="main")
    story.call(1, "barrier", "main")
    story.call(2, "barrier", "pair", thread=71)
    story.call(2, "barrier", "other", thread=72)  # rank 3 will come
    assert story.found() is None


def test_an_undecided_mismatch_is_judged_at_patience() -> None:
    story = Story(4)
    story.call(0)
    story.call(1)
    story.call(2, "barrier")
    assert story.found(later=1.9, patience=TWO_SECONDS) is None
    assert story.found(later=0.2, patience=TWO_SECONDS) == ("mismatch", [2])


def test_an_undecided_mismatch_withholds_what_follows_from_it() -> None:
    story = Story(5)
    story.call(0)
    story.call(1)
    story.call(2, "barrier")
    story.group("pair", 2, 3)
    story.call(3, "barrier", "pair")
    story.ends_process(2, -11)
    assert story.found() is None
    story.call(4)
    assert story.found() == ("mismatch", [2])


def test_the_earlier_event_wins_over_what_came_of_it() -> None:
    story = Story(3)
    for rank in range(3):
        story.call(rank, elements=4 + (rank == 1))
    story.call(0)
    story.ends_process(2, -11)
    assert story.found() == ("mismatch", [1])


def test_swapped_calls_are_an_order() -> None:
    story = Story(3)
    for rank in range(3):
        calls = ["all_reduce", "barrier"]
        for op in reversed(calls) if rank == 1 else calls:
            story.call(rank, op, flags=ASYNC)
    assert story.found() == ("order", [1])


def test_swapped_tags_are_an_order() -> None:
    story = Story(3)
    for rank in range(3):
        for tag in "ba" if rank == 1 else "ab":
            story.call(rank, tag=tag, flags=ASYNC)
    assert story.found() == ("order", [1])


def test_a_tag_on_one_side_only_matches_anything() -> None:
    story = Story(3)
    story.call(0, tag="gate:r0c1")
    story.call(1)
    assert story.found() is None
    story.call(2, tag="gate:r0c1")
    assert story.found() is None


def test_an_untagged_call_votes_for_nobody() -> None:
    story = Story(3)
    story.call(0)
    story.call(1, tag="a")
    story.call(2, tag="b")
    assert story.found() is None  # their next calls may show a swap
    assert story.found(later=0.2) == ("mismatch", [1, 2])


def test_a_clean_up_collective_while_an_exception_passes_is_raised() -> None:
    story = Story(3)
    story.call(0)
    story.call(1, "barrier", flags=Flag.WAITED | Flag.UNWINDING)
    story.call(2)
    assert story.found() == ("raised", [1])


# Ties


@pytest.mark.parametrize(("first", "second"), list(pairwise(PRECEDENCE)))
def test_at_one_moment_precedence_decides(first: str, second: str) -> None:
    one, other = Finding(first, 5.0004, "g", 0, (), {}), Finding(second, 5.0003, "g", 0, (), {})
    assert min((other, one), key=lambda finding: finding.rank_order) is one


def test_otherwise_the_earlier_wins() -> None:
    early, late = Finding("stalled", 5.0, "g", 0, (), {}), Finding("crashed", 5.1, "g", 0, (), {})
    assert min((late, early), key=lambda finding: finding.rank_order) is early
