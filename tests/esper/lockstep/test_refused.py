"""A call that the backend refuses has no place in the order; nothing is concluded before it is taken."""

from __future__ import annotations

from esper.lockstep.proof.finding import Patience
from esper.lockstep.record.entry import Flag
from tests.esper.lockstep.story import Story

OFFERED = Flag.WAITED | Flag.OFFERED


def test_a_refused_call_contradicts_nobody_and_the_next_has_its_number() -> None:
    story = Story(3)
    probe = story.call(0, "broadcast", flags=OFFERED)
    story.call(1)
    story.call(2)
    assert story.found() is None
    story.refuse(probe)
    assert story.found() is None
    story.call(0)
    assert story.found() is None
    assert list(story.view.matching.open()) == []


def test_a_call_that_was_refused_before_it_was_read_is_passed_over() -> None:
    story = Story(2)
    story.refuse(story.call(0, "broadcast", flags=Flag.WAITED | Flag.FAILED | Flag.REFUSED))
    story.call(1)
    story.call(0)
    assert list(story.view.matching.open()) == []


def test_the_next_call_may_be_read_together_with_the_refused_one() -> None:
    story = Story(2)
    probe = story.call(0, "broadcast", flags=OFFERED)
    story.refuse(probe)
    story.call(0)
    story.call(1)
    assert story.found() is None
    assert list(story.view.matching.open()) == []


def test_a_refused_call_that_was_like_the_others_does_not_count_twice() -> None:
    story = Story(2)
    probe = story.call(0, flags=OFFERED)
    story.call(1)  # all have come, as it seems
    story.refuse(probe)
    story.call(0)
    assert story.found() is None
    assert list(story.view.matching.open()) == []


def test_a_call_that_was_taken_contradicts_the_others() -> None:
    story = Story(3)
    wrong = story.call(0, "broadcast", flags=OFFERED)
    story.call(1)
    story.call(2)
    assert story.found() is None
    story.take(wrong)
    assert story.found() == ("mismatch", [0])


def test_a_call_that_is_never_taken_is_judged_at_patience_or_at_the_end() -> None:
    story = Story(3)
    story.call(0, "broadcast", flags=OFFERED)
    story.call(1)
    story.call(2)
    assert story.found(patience=Patience(2.0, 2.0)) is None
    assert story.found(later=3.0, patience=Patience(2.0, 2.0)) == ("mismatch", [0])
    assert story.found(final=True) == ("mismatch", [0])


def test_whoever_raises_its_own_refusal_is_to_blame_that_others_wait() -> None:
    story = Story(2)
    probe = story.call(0, "broadcast", flags=OFFERED)
    story.call(1)
    story.refuse(probe)
    story.raises(0)
    assert story.found() == ("raised", [0])


def test_a_refused_call_is_waited_for_by_nobody() -> None:
    story = Story(2)
    entry = story.call(0, flags=OFFERED)
    assert not entry.blocks()
    assert entry.waited()
    refused = entry._replace(times=entry.times._replace(flags=Flag.WAITED | Flag.FAILED | Flag.REFUSED))
    assert not refused.waited()
