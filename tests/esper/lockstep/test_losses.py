"""What was lost on the way accuses nobody."""

from __future__ import annotations

from tests.esper.lockstep.story import ASYNC, TWO_SECONDS, Story

# What is lost


def test_a_rank_whose_records_were_lost_has_come() -> None:
    story = Story(2)
    story.call(0)
    story.call(0, flags=ASYNC)
    story.call(1, skip=1)
    assert story.found(later=1e6, patience=TWO_SECONDS) is None
    story.ends_process(1)
    assert story.found() is None
    assert list(story.view.matching.open()) == []


def test_a_slot_that_opens_after_the_loss_knows_of_it() -> None:
    story = Story(2)
    story.call(1, skip=3)
    for _ in range(4):
        story.call(0)
    story.ends_process(1, -9)
    assert story.found() is None
    story.call(0)
    assert story.found() == ("crashed", [1])


def test_a_rank_that_can_not_be_read_is_not_accused() -> None:
    story = Story(2)
    story.call(1, legible=False)
    story.call(0)
    story.ends_process(1)
    assert story.found() is None


def test_lost_sends_and_receives_prove_nothing() -> None:
    story = Story(2)
    story.point(0, "recv", 1)
    story.point(1, "recv", 0, skip=5)
    assert story.found() is None


def test_an_overwritten_entry_waits_no_longer() -> None:
    story = Story(3)
    leaf = story.call(0, "broadcast", root=1)
    story.overwrite(leaf)
    assert story.found(later=60.0, patience=TWO_SECONDS) is None
