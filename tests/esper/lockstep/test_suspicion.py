"""What is judged by patience."""

from __future__ import annotations

import pytest

from esper.lockstep.record.entry import Flag
from tests.esper.lockstep.story import ASYNC, TWO_SECONDS, Story, in_step


def cross_wait(story: Story, flags: Flag = Flag.WAITED) -> None:
    story.group("a", 0, 1)
    story.group("b", 0, 1)
    story.call(0, "all_reduce", "a", flags=flags)
    story.call(1, "all_reduce", "b")


# frozen and stalled


@pytest.mark.parametrize(("letter", "kind"), [("S", "frozen"), ("D", "stalled"), ("R", "stalled")])
def test_a_late_rank_is_judged_after_the_patience(letter: str, kind: str) -> None:
    story = in_step(3)
    story.call(0)
    story.call(1)
    story.letters[2] = letter
    assert story.found(later=1.9, patience=TWO_SECONDS) is None
    assert story.found(later=0.2, patience=TWO_SECONDS) == (kind, [2])


def test_a_stopped_rank_is_judged_sooner() -> None:
    story = in_step(2)
    story.call(0)
    story.letters[1], story.stopped[1] = "T", story.now
    assert story.found(later=0.4, patience=TWO_SECONDS) is None
    assert story.found(later=0.2, patience=TWO_SECONDS) == ("frozen", [1])


def test_time_without_a_processor_is_not_its_own() -> None:
    story = Story(2)
    story.call(0)
    story.starving[1] = 5.0
    assert story.found(later=6.0, patience=TWO_SECONDS) is None
    finding = story.prove(later=2.0, patience=TWO_SECONDS)
    assert finding is not None
    assert (finding.kind, sorted(finding.guilty), finding.starved) == ("stalled", [1], 5.0)


def test_time_in_which_it_compiles_is_not_its_own_up_to_a_limit() -> None:
    story = Story(2)
    story.call(0)
    story.compiling[1] = 5.0
    assert story.found(later=6.0, patience=TWO_SECONDS) is None
    finding = story.prove(later=2.0, patience=TWO_SECONDS)
    assert finding is not None
    assert (finding.kind, sorted(finding.guilty), finding.compiled) == ("stalled", [1], 5.0)
    story.compiling[1] = 590.0
    assert story.found(later=580.0, patience=TWO_SECONDS) is None
    story.compiling[1] = 1000.0
    assert story.found(later=13.0, patience=TWO_SECONDS) is None
    finding = story.prove(later=2.0, patience=TWO_SECONDS)
    assert finding is not None
    assert (finding.kind, sorted(finding.guilty), finding.compiled) == ("stalled", [1], 600.0)


def test_a_rank_that_is_stopped_while_it_compiles_is_judged_as_soon_as_any() -> None:
    story = Story(2)
    story.call(0)
    story.compiling[1] = 5.0
    story.letters[1], story.stopped[1] = "T", story.now
    assert story.found(later=0.6, patience=TWO_SECONDS) == ("frozen", [1])


def test_a_thread_that_compiles_may_still_end_a_standstill() -> None:
    story = Story(2)
    story.threads_of = {0: 2, 1: 1}
    cross_wait(story)
    story.compiling[0] = 5.0
    assert story.found(later=6.0, patience=TWO_SECONDS) is None
    assert story.found(later=2.0, patience=TWO_SECONDS) == ("stalled", [0, 1])


def test_a_late_rank_that_was_stopped_just_now_is_not_judged_for_it() -> None:
    story = in_step(2)
    story.call(0)
    story.now += 1.5
    story.letters[1], story.stopped[1] = "T", story.now
    assert story.found(later=0.1, patience=TWO_SECONDS) is None


def test_the_patience_begins_with_the_wait_and_not_with_the_call() -> None:
    story = Story(2)
    work = story.call(0, flags=ASYNC)
    story.now += 60.0
    story.begin_wait(work)
    assert story.found(later=1.0, patience=TWO_SECONDS) is None
    assert story.found(later=1.5, patience=TWO_SECONDS) == ("stalled", [1])


def test_a_rank_is_not_late_while_it_was_held_up_itself() -> None:
    story = Story(3)
    story.group("pair", 1, 2)
    story.call(0)
    held = story.call(1, "barrier", "pair")
    story.now += 60.0
    story.call(2, "barrier", "pair")
    story.come_back(held)
    assert story.found(later=1.0, patience=TWO_SECONDS) is None


def test_the_rank_at_the_end_of_the_chain_is_late() -> None:
    story = Story(3)
    story.group("pair", 1, 2)
    story.call(0)
    story.call(1, "barrier", "pair")
    assert story.found(later=3.0, patience=TWO_SECONDS) == ("stalled", [2])


def test_a_wait_that_was_given_up_makes_nobody_late() -> None:
    story = Story(2)
    work = story.call(0, flags=ASYNC)
    story.begin_wait(work, polled=True)
    story.come_back(work, failed=True)
    assert story.found(later=10.0, patience=TWO_SECONDS) is None


def test_a_polled_wait_is_a_wait() -> None:
    story = Story(2)
    work = story.call(0, flags=ASYNC)
    for _ in range(30):
        story.begin_wait(work, polled=True)
        story.now += 0.1
        story.come_back(work, failed=True)
    assert story.found(patience=TWO_SECONDS) == ("stalled", [1])


def test_a_rank_stopped_inside_a_collective_that_all_have_entered() -> None:
    story = Story(3)
    story.call(1)
    story.letters[1], story.stopped[1] = "T", story.now
    story.call(0)
    story.call(2)
    assert story.found(later=0.4, patience=TWO_SECONDS) is None
    finding = story.prove(later=0.2, patience=TWO_SECONDS)
    assert finding is not None
    assert (finding.kind, list(finding.guilty)) == ("frozen", [1])
    assert sorted(entry.rank for entry in finding.waiting) == [0, 2]


def test_a_rank_stopped_after_it_came_back_holds_nobody() -> None:
    story = in_step(2)
    story.letters[1], story.stopped[1] = "T", story.now
    assert story.found(later=60.0, patience=TWO_SECONDS) is None


def test_a_rank_that_ended_in_the_making_of_a_group() -> None:
    story = Story(3)
    for rank in range(3):
        story.call(rank, "new_group")
    story.ends_process(1, -9)
    assert story.found(later=1.9, patience=TWO_SECONDS) is None
    finding = story.prove(later=0.2, patience=TWO_SECONDS)
    assert finding is not None
    assert (finding.kind, list(finding.guilty)) == ("crashed", [1])
    assert sorted(entry.rank for entry in finding.waiting) == [0, 2]


@pytest.mark.parametrize("op", ["new_group", "all_reduce"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_ended_when_it_or_the_other_had_come_back(op: str, first: int) -> None:
    story = Story(2)
    calls = [story.call(rank, op) for rank in range(2)]
    story.come_back(calls[first])
    story.ends_process(1)
    assert story.found(later=60.0, patience=TWO_SECONDS) is None


def stop(story: Story, rank: int) -> None:
    story.letters[rank], story.stopped[rank] = "T", story.now


@pytest.mark.parametrize("calls_after", [0, 3])
def test_a_rank_stopped_with_an_earlier_collective_under_way(calls_after: int) -> None:
    story = Story(2)
    works = [story.call(rank, flags=ASYNC) for rank in (0, 1)]
    for _ in range(calls_after):
        for rank in (0, 1):
            story.call(rank, flags=ASYNC)
    stop(story, 1)
    assert story.found(later=60.0, patience=TWO_SECONDS) is None
    story.begin_wait(works[0])
    assert story.found(later=0.4, patience=TWO_SECONDS) is None
    assert story.found(later=0.2, patience=TWO_SECONDS) == ("frozen", [1])


@pytest.mark.parametrize("source", [1, -1])
def test_a_rank_stopped_before_what_it_sends_has_left_it(source: int) -> None:
    story = Story(3)
    story.point(1, "send", 0, flags=ASYNC)
    stop(story, 1)
    story.point(0, "recv", source)
    assert story.found(later=0.4, patience=TWO_SECONDS) is None
    assert story.found(later=0.2, patience=TWO_SECONDS) == ("frozen", [1])


def test_a_rank_stopped_before_it_took_what_was_sent_to_it() -> None:
    story = Story(2)
    story.point(1, "recv", 0, flags=ASYNC)
    stop(story, 1)
    story.point(0, "send", 1)
    assert story.found(later=0.6, patience=TWO_SECONDS) == ("frozen", [1])


def test_a_stopped_rank_does_not_hold_up_those_whose_message_it_did_not_send() -> None:
    story = Story(3)
    story.point(1, "send", 0, flags=ASYNC)
    stop(story, 1)
    story.come_back(story.point(0, "recv", -1))
    story.point(2, "send", 0)
    assert story.found(later=1.9, patience=TWO_SECONDS) is None
    assert story.found(later=0.2, patience=TWO_SECONDS) == ("stalled", [0])


def test_a_standstill_that_still_moves_is_none() -> None:
    story = Story(2)
    story.threads_of = {0: 2, 1: 2}
    story.group("c", 0, 1)
    cross_wait(story)
    for _ in range(10):
        story.now += 1.0
        story.come_back(*[story.call(rank, "barrier", "c", thread=70 + rank) for rank in (0, 1)])
        assert story.found(patience=TWO_SECONDS) is None
