"""Who is out of turn where ranks wait for each other, by what each of them has entered."""

from __future__ import annotations

import pytest

from tests.esper.lockstep.story import ASYNC, Story


def test_who_has_entered_both_calls_tells_which_comes_first() -> None:
    """Ranks 2 and 3 wait where rank 1 is still to come, and have entered what it waits in before that."""
    story = Story(4)
    story.group("b", 1, 2, 3)
    story.group("c", 0, 1, 2, 3)
    story.call(0, "all_gather", "c")  # meant the default group
    for rank in (3, 2):
        story.call(rank, "all_gather", flags=ASYNC)
        story.call(rank, "all_gather", "b")
    story.call(1, "all_gather")
    assert story.found() == ("wait_cycle", [0])


def test_a_receive_from_anybody_speaks_against_nobody() -> None:
    """Rank 2 has swapped its two calls, and any member may be who would have sent."""
    story = Story(3)
    for name, members in {"A": (1, 2), "B": (0, 2), "g": (0, 1)}.items():
        story.group(name, *members)
    story.point(0, "recv", -1, "g")
    story.call(1, group="A")
    story.call(2, group="B")
    assert story.found() == ("wait_cycle", [0, 1, 2])


@pytest.mark.parametrize("lost", [False, True])
def test_who_has_entered_what_is_not_known_of_has_no_vote(lost: bool) -> None:
    """Rank 2 tells which of the calls of 0 and 1 comes first, unless its record of the one is lost."""
    story = Story(3)
    for name, members in {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 2)}.items():
        story.group(name, *members)
    story.call(0, group="a")
    story.call(2, group="a", flags=ASYNC, skip=int(lost))
    story.call(2, group="b", flags=ASYNC)
    story.call(2, group="c")
    story.call(1, group="b")
    assert story.found() == ("wait_cycle", [0, 1] if lost else [1])


def test_each_thread_speaks_for_its_rank() -> None:
    """Rank 0 waits in a helper thread for what 2 and 3 lack, and in its first one where rank 1 does, too."""
    story = Story(4)
    story.group("a", 0, 1, 2, 3)
    story.group("b", 0, 1, 2, 3)
    story.group("c", 0, 2, 3)
    story.threads_of[0] = 2
    story.call(0, group="a")
    story.call(1, group="a")
    story.call(0, group="c", thread=77)
    story.call(2, group="b")
    story.call(3, group="b")
    assert story.found() == ("wait_cycle", [0, 1, 2, 3])


@pytest.mark.parametrize("first", [(0, 1, 5), (3, 4, 5)])
def test_one_vote_that_nobody_can_change_is_enough(first: tuple[int, ...]) -> None:
    """Two calls lack rank 2; rank 5, a member of one of them, is still on its way."""
    story = Story(6)
    story.group("b", *range(6))
    groups = {"a1": first, "a2": tuple(rank for rank in (0, 1, 3, 4) if rank not in first)}
    for name, members in groups.items():
        story.group(name, *sorted((*members, 2)))
    for name, members in groups.items():
        for rank in members:
            if rank != 5:
                story.call(rank, group=name)
    story.call(2, group="b")
    assert story.found() == ("wait_cycle", [2])


def test_who_may_still_tie_a_vote_is_waited_for() -> None:
    story = Story(5)
    story.group("a", *range(5))
    story.group("b", *range(5))
    for rank, name in enumerate(("a", "a", "b")):
        story.call(rank, group=name)
    assert story.found() is None
    story.call(3, group="a")
    assert story.found() == ("wait_cycle", [2])


def test_whose_arrival_changes_nothing_is_not_waited_for() -> None:
    """Rank 5 is a member of the others' call, and of neither of those of which it is open who is right."""
    story = Story(7)
    for name, members in {"A": (1, 2, 3, 4, 5, 6), "B": (0, 3), "C": (0, 1, 2, 4, 6)}.items():
        story.group(name, *members)
    story.call(3, group="B")
    story.call(0, group="C")
    for rank in (1, 2, 4, 6):
        story.call(rank, group="A")
    assert story.found() == ("wait_cycle", [0, 3])


def test_who_could_not_serve_the_one_that_names_it_has_not_named_another() -> None:
    """Rank 2 may have left out its send to 1 as well as rank 0 its receive: both would be in its way."""
    story = Story(3)
    story.point(1, "recv", 2)
    story.point(2, "recv", 0)
    story.call(0, "barrier")
    found = story.found()
    assert found is not None
    assert {0, 2} <= set(found[1])


def test_a_message_of_another_tag_would_not_have_met_it() -> None:
    story = Story(3)
    story.point(1, "send", 2, p2p_tag=5)
    story.point(2, "recv", 0, p2p_tag=1)
    story.call(0, "barrier")
    found = story.found()
    assert found is not None
    assert {0, 2} <= set(found[1])
