"""Ranks that wait for each other: which of them can never go on."""

from __future__ import annotations

import pytest

from esper.lockstep.record.entry import Flag, Kind
from tests.esper.lockstep.story import ASYNC, NATIVE, TWO_SECONDS, Story

# wait_cycle


def cross_wait(story: Story, flags: Flag = Flag.WAITED) -> None:
    story.group("a", 0, 1)
    story.group("b", 0, 1)
    story.call(0, "all_reduce", "a", flags=flags)
    story.call(1, "all_reduce", "b")


def test_two_ranks_in_each_others_groups() -> None:
    story = Story(2)
    cross_wait(story)
    finding = story.prove()
    assert finding is not None
    assert (finding.kind, sorted(finding.guilty)) == ("wait_cycle", [0, 1])


def test_the_majority_at_one_place_is_not_guilty() -> None:
    story = Story(3)
    story.group("all", 0, 1, 2)
    story.call(0)
    story.call(1)
    story.call(2, "all_reduce", "all")
    finding = story.prove()
    assert finding is not None
    assert (finding.kind, sorted(finding.guilty)) == ("wait_cycle", [2])
    assert sorted(entry.rank for entry in finding.waiting) == [0, 1]


def test_who_is_in_one_of_the_groups_only_is_no_witness() -> None:
    """Rank 3 left out the pair's call, and not rank 0 made one too many: 1 and 2 know nothing of it."""
    story = Story(4)
    story.group("pair", 0, 3)
    story.call(0, "all_gather", "pair")
    story.call(1)
    story.call(2)
    story.call(3, flags=ASYNC)
    story.call(3)
    assert story.found() == ("wait_cycle", [0, 3])


def test_who_only_waits_for_the_cycle_is_not_in_it() -> None:
    story = Story(3)
    cross_wait(story)
    story.call(2)
    assert story.found() == ("wait_cycle", [0, 1])


def test_a_helper_thread_may_yet_come() -> None:
    story = Story(2)
    story.threads_of[0] = 2
    cross_wait(story)
    assert story.found() is None
    # Who of the two is wrong only that thread would have told.
    assert story.found(later=3.0, patience=TWO_SECONDS) == ("stalled", [0, 1])


def test_two_threads_that_both_wait_are_no_way_out() -> None:
    story = Story(2)
    story.threads_of[0] = 2
    cross_wait(story)
    story.group("c", 0, 1)
    story.call(0, "barrier", "c", thread=77)
    assert story.found() == ("wait_cycle", [0, 1])


def test_a_second_thread_that_waits_for_somebody_free_is_a_way_out() -> None:
    story = Story(3)
    story.threads_of[0] = 2
    cross_wait(story)
    story.group("c", 0, 2)
    story.call(0, "barrier", "c", thread=77)
    assert story.found() is None
    story.call(2)  # in its turn it waits for the two
    assert story.found() == ("wait_cycle", [0, 1, 2])


def test_a_wait_with_a_time_out_of_its_own_is_no_proof() -> None:
    story = Story(2)
    cross_wait(story, Flag.WAITED | Flag.POLLED)
    assert story.found() is None
    assert story.found(later=3.0, patience=TWO_SECONDS) is not None


def test_an_asynchronous_call_is_no_wait() -> None:
    story = Story(2)
    story.group("a", 0, 1)
    story.group("b", 0, 1)
    work = story.call(0, "all_reduce", "a", flags=ASYNC)
    story.call(1, "all_reduce", "b")
    assert story.found(later=1e6) is None
    story.begin_wait(work)
    assert story.found() == ("wait_cycle", [0, 1])


def test_a_native_call_waits_only_when_its_thread_sleeps_in_it() -> None:
    story = Story(2)
    story.awake.add(0)
    cross_wait(story, NATIVE)
    assert story.found() is None
    story.awake.clear()
    assert story.found() == ("wait_cycle", [0, 1])


def test_a_thread_in_cpp_may_be_in_what_all_have_entered() -> None:
    """Its data are under way, and then it goes on."""
    story = Story(2)
    entered = [story.call(rank, flags=NATIVE) for rank in (0, 1)]
    cross_wait(story, NATIVE)
    assert story.found(later=1.0) is None
    story.finish(entered[1])  # which is nothing to rank 0
    assert story.found() is None
    assert story.found(later=3.0, patience=TWO_SECONDS) == ("stalled", [0, 1])
    story.finish(entered[0])
    assert story.found() == ("wait_cycle", [0, 1])


def test_a_thread_in_cpp_may_be_in_what_it_gets_past_without_all() -> None:
    story = Story(3)
    story.call(1, "broadcast", root=1, flags=ASYNC)
    leaf = story.call(0, "broadcast", root=1, flags=NATIVE)  # rank 2 has not come, and need not
    story.group("a", 0, 1)
    story.group("b", 0, 1)
    story.call(0, "all_reduce", "a", flags=NATIVE)
    story.call(1, "all_reduce", "b")
    assert story.found(later=1.0) is None
    story.finish(leaf)
    assert story.found() == ("wait_cycle", [0, 1])


def test_a_thread_in_cpp_may_be_in_a_receive_that_has_its_message() -> None:
    """Of which nobody records that it is done."""
    story = Story(2)
    story.point(0, "recv", 1, flags=NATIVE)
    story.point(1, "send", 0, flags=ASYNC)
    cross_wait(story, NATIVE)
    assert story.found(later=1.0) is None
    assert story.found(later=3.0, patience=TWO_SECONDS) == ("stalled", [0, 1])


def test_an_absent_vote_is_awaited_while_its_data_come() -> None:
    """Ranks 0 and 1 contradict each other, and rank 2 may yet side with one of them."""
    story = Story(3)
    story.group("a", 0, 2)
    story.group("b", 0, 2)
    entered = [story.call(rank, group="b", flags=NATIVE) for rank in (0, 2)]
    story.call(2, group="a", flags=NATIVE)
    story.call(0, "all_reduce")
    story.call(1, "broadcast", root=0)
    assert story.found(later=1.0) is None
    story.finish(entered[1])
    assert story.found() == ("mismatch", [0, 1])


def test_a_native_call_does_not_hold_a_thread_that_has_gone_on_to_another_wait() -> None:
    story = Story(3)
    story.group("a", 0, 1)
    story.group("b", 0, 2)
    story.call(0, "all_reduce", "a", flags=NATIVE)
    story.call(0, "barrier", "b")  # rank 2 will come, and rank 0 goes on
    story.group("c", 0, 1)
    story.call(1, "barrier", "c")
    assert story.found(later=1e6) is None


def test_a_sender_and_a_sender() -> None:
    story = Story(2)
    story.point(0, "send", 1)
    story.point(1, "send", 0)
    assert story.found() == ("peer", [0, 1])


def test_who_names_another_peer_is_guilty_of_the_cycle() -> None:
    story = Story(3)
    story.point(1, "send", 2)
    story.point(2, "recv", 0)
    story.call(0, "barrier")
    assert story.found() == ("peer", [2])


def test_a_send_into_a_collective_blames_nobody_alone() -> None:
    story = Story(2)
    story.point(0, "send", 1)
    story.call(1, "barrier")
    assert story.found() == ("wait_cycle", [0, 1])


def test_point_to_point_tags_keep_apart() -> None:
    story = Story(2)
    story.point(0, "send", 1, p2p_tag=1)
    story.point(1, "recv", 0, p2p_tag=2)
    assert story.found() == ("peer", [0, 1])


def test_a_send_to_a_receiver_from_any_source_is_no_proof() -> None:
    story = Story(2)
    received = story.point(1, "recv", -1)
    story.point(0, "send", 1)
    story.come_back(received)
    story.call(1, "barrier")  # the sender's return is not stamped yet
    assert story.found() is None


def test_a_message_must_fit_the_buffer_of_its_receive() -> None:
    story = Story(2)
    story.point(0, "send", 1, shape=(2,), dtype="int64")
    story.point(1, "recv", 0)
    assert story.found() is None  # as many bytes
    story.point(0, "send", 1, shape=(3,))
    story.point(1, "recv", 0)
    assert story.found() is None  # a shorter one is legal
    story.point(1, "recv", 0)
    story.point(0, "send", 1, shape=(5,))
    assert story.found() == ("mismatch", [0, 1])


def test_messages_that_have_met_are_let_go() -> None:
    story = Story(2)
    for step in range(1, 50):
        story.point(0, "send", 1, p2p_tag=step)
        story.point(1, "recv", 0, p2p_tag=step)
    assert len(story.view.matching._mailboxes) == 0


def test_parts_of_an_all_to_all_must_fit() -> None:
    def story(sent: list[int]) -> Story:
        story = Story(2)
        parts: list[dict[str, object]] = [{"to": sent, "from": [1, 2]}, {"to": [2, 2], "from": [3, 2]}]
        for rank, detail in enumerate(parts):
            story.write(
                rank, Kind.COLLECTIVE, group="default", op="all_to_all", flags=Flag.WAITED, detail=detail
            )
        return story

    assert story([1, 3]).found() is None
    assert story([1, 4]).found() == ("mismatch", [0, 1])


def test_a_receiver_from_any_source_waits_for_one_of_the_others() -> None:
    story = Story(3)
    story.point(0, "recv", -1)
    story.point(1, "recv", 0)
    assert story.found() is None  # rank 2 may send
    story.point(2, "recv", 0)
    assert story.found() == ("peer", [0, 1, 2])


def test_a_receiver_from_any_source_waits_no_more_when_all_the_others_are_gone() -> None:
    story = Story(3)
    story.point(0, "recv", -1)
    story.point(1, "recv", 0)
    story.ends_program(2)
    assert story.found() == ("missing", [2])  # it left, rank 1 is only held up
    story = Story(3)
    story.point(0, "recv", -1)
    story.ends_program(1)
    assert story.found(later=1.0) is None
    story.ends_program(2)
    finding = story.prove()
    assert finding is not None
    assert (finding.kind, sorted(finding.guilty)) == ("missing", [1, 2])
    assert story.now - finding.since < 0.1


def test_a_message_that_is_left_may_be_what_a_receiver_from_any_source_takes() -> None:
    story = Story(3)
    story.point(1, "send", 0, flags=ASYNC)
    story.come_back(story.point(0, "recv", -1))
    story.point(2, "send", 0, flags=ASYNC)
    story.point(0, "recv", -1)
    story.ends_program(1)
    story.ends_program(2)
    assert story.found() is None
    story.point(0, "recv", -1)  # one message, two that wait: who of them has it is open
    assert story.found() is None


def test_named_receives_beside_those_from_any_source() -> None:
    story = Story(2)
    for _ in range(2):
        story.point(1, "send", 0, flags=ASYNC)
    story.come_back(story.point(0, "recv", 1), story.point(0, "recv", -1))
    story.point(0, "recv", 1)
    story.point(1, "recv", 0)
    assert story.found() == ("peer", [0, 1])


def test_a_send_that_no_receive_from_any_source_took() -> None:
    story = Story(3)
    story.point(1, "send", 0)
    story.come_back(story.point(0, "recv", -1))
    story.ends_program(0)
    assert story.found() is None  # the sender's return is not stamped yet
    story.point(2, "send", 0)
    assert story.found() is None  # one of the two, and which is not to be known
    story.come_back(*(wait.entry for wait in story.view.waits()[1]))
    assert story.found() == ("missing", [0])


@pytest.mark.parametrize(
    ("op", "root", "proved"),
    [
        ("broadcast", 0, False),
        ("scatter", 0, False),
        ("reduce", 2, False),
        ("reduce", 0, True),
        ("broadcast", 2, True),
    ],
)
def test_only_what_the_result_depends_on_holds_a_rank(op: str, root: int, proved: bool) -> None:
    story = Story(3)
    story.group("pair", 0, 2)
    story.call(0, op, root=root)
    story.call(2, "barrier", "pair")
    assert story.found() is None  # rank 1 may come yet, and tell who is out of order
    assert (story.found(later=3.0, patience=TWO_SECONDS) == ("wait_cycle", [0, 2])) is proved


def test_a_root_waits_for_the_only_leaf() -> None:
    story = Story(2)
    story.group("a", 0, 1)
    story.group("b", 0, 1)
    story.call(0, "broadcast", "a", root=0)
    story.call(1, "broadcast", "b", root=1)
    assert story.found() == ("wait_cycle", [0, 1])


def test_a_leaf_does_not_wait_for_another_leaf() -> None:
    story = Story(3)
    story.group("pair", 0, 2)
    story.call(0, "broadcast", root=1)
    story.call(2, "barrier", "pair")
    assert story.found() is None  # the root will come, and rank 0 goes on


def test_who_can_tell_nothing_holds_no_verdict_up() -> None:
    story = Story(3)
    story.group("a", 0, 1)
    story.group("b", 0, 1)
    story.call(0, "all_reduce", "a")
    story.call(1, "all_reduce", "b")
    assert story.found() == ("wait_cycle", [0, 1])  # rank 2 is in neither group
