"""Whom a peer brought down is not to blame."""

from __future__ import annotations

import pytest

from esper.lockstep.record.entry import Kind
from tests.esper.lockstep.story import ASYNC, NATIVE, Story

# Victims


def test_a_victim_of_a_crash_is_not_blamed_though_it_ends_first() -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    broken = story.call(1)
    story.call(0, "barrier", "pair")
    story.come_back(broken, failed=True)
    story.raises(1, victim=True)
    story.ends_process(1, 1)
    assert story.found() is None
    story.ends_process(2, -9)
    assert story.found() == ("crashed", [2])


@pytest.mark.parametrize("how", ["destroy", "exit", "over", "unwinding destroy"])
def test_a_victim_that_cleans_up_is_not_blamed(how: str) -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    broken = story.call(1)
    story.call(0, "barrier", "pair")
    story.come_back(broken, failed=True)
    if how == "destroy":
        story.destroys(1, "pair")
    elif how == "exit":
        story.exits(1, 1)
    elif how == "over":
        story.ends_program(1)
    else:
        story.destroys(1, "pair", error="RuntimeError: closed by peer", victim=True)
    assert story.found() is None
    story.ends_process(2, -9)
    assert story.found() == ("crashed", [2])


def test_the_peer_that_brought_a_victim_down_is_named_where_only_the_victim_is_awaited() -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    for rank in range(3):
        story.call(rank)  # all have entered: nobody lacks rank 2
    story.raises(1, victim=True)
    story.ends_process(1, 1)
    story.call(0, "barrier", "pair")
    assert story.found() is None
    story.ends_process(2, -9)
    assert story.found() == ("crashed", [2])


def test_a_death_long_after_is_not_what_brought_a_victim_down() -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    story.call(0, "barrier", "pair")
    story.raises(1, victim=True)
    story.ends_process(1, 1)
    assert story.found() is None
    story.now += 1.0
    story.ends_process(2, -9)
    assert story.found() == ("raised", [1])


def test_who_leaves_after_a_call_broke_that_all_had_entered_is_a_victim() -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    story.call(0, "barrier", "pair")
    for rank in (0, 2):
        story.call(rank, flags=ASYNC)
    story.come_back(story.call(1), failed=True)
    story.exits(1, 1)
    assert story.found() is None
    story.ends_process(2, -9)
    assert story.found() == ("crashed", [2])


def test_a_call_that_broke_though_all_had_entered_it_is_its_breakers_doing() -> None:
    story = Story(3)
    for rank in (0, 1):
        story.call(rank, flags=ASYNC)
    broken = story.call(2)
    story.ends_process(1, -9)
    story.come_back(broken, failed=True)
    story.raises(2, victim=True)
    assert story.found() is None  # a death is noticed a little late
    assert story.found(later=0.3) == ("crashed", [1])


def test_a_send_to_a_rank_that_is_gone_is_its_end() -> None:
    story = Story(3)
    story.ends_process(1, 9)
    story.come_back(story.point(0, "send", 1, flags=ASYNC), failed=True)
    assert story.found(later=0.3) is None  # caught, perhaps
    story.raises(0, victim=True)
    assert story.found(later=0.3) == ("exited", [1])


def test_who_gives_up_names_the_one_that_never_came() -> None:
    story = Story(3)
    story.letters[1] = "S"
    story.come_back(story.call(0), failed=True)
    story.raises(0, victim=True)
    story.call(2)
    assert story.found(later=0.3) == ("frozen", [1])
    own = Story(3)
    own.call(0, flags=ASYNC)
    own.raises(0)  # an error of its own
    assert own.found(later=0.3) is None


def test_an_excuse_without_a_culprit_does_not_hold() -> None:
    story = Story(2)
    story.call(0)
    story.raises(1, victim=True)
    story.ends_process(1, 1)
    assert story.found(later=0.1) is None  # a death is noticed a little late
    assert story.found(later=0.2) == ("raised", [1])


def test_an_abort_inside_a_collective_is_gloos_answer_to_a_peer() -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    story.call(1)
    story.call(0, "barrier", "pair")
    story.ends_process(1, -6)
    assert story.found() is None
    story.ends_process(2, 1)
    assert story.found() == ("exited", [2])


def test_an_abort_that_no_peer_explains_is_a_crash() -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    story.call(1)
    story.call(0, "barrier", "pair")
    story.ends_process(1, -6)
    assert story.found(later=0.1) is None
    assert story.found(later=0.2) == ("crashed", [1])


def test_an_exception_at_the_line_of_a_pending_reducer_call_is_a_peers_doing() -> None:
    story = Story(3)
    story.group("pair", 0, 1)
    story.call(1, flags=NATIVE)
    story.call(0, "barrier", "pair")
    story.write(1, Kind.RAISED, detail={"type": "RuntimeError", "leaves": True})  # same site
    assert story.found() is None


def test_an_exception_elsewhere_while_a_reducer_call_is_pending_is_the_programs_own() -> None:
    story = Story(2)
    story.group("pair", 0, 1)
    story.call(1, flags=NATIVE)
    story.call(0, "barrier", "pair")
    story.raises(1, line=99)
    assert story.found() == ("raised", [1])


def test_a_wait_given_up_before_the_end_is_the_programs_own_affair() -> None:
    story = Story(2)
    given_up = story.call(0)
    story.come_back(given_up, failed=True)
    story.now += 1.0
    story.exits(1)
    assert story.found() is None


def test_a_wait_broken_just_before_the_death_was_noticed_counts() -> None:
    story = Story(2)
    broken = story.call(0)
    story.come_back(broken, failed=True)
    story.ends_process(1, -9)
    assert story.found() == ("crashed", [1])
