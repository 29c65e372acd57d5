"""When an exchange speaks to the job's store, and what a store that doesn't answer costs."""

from __future__ import annotations

import threading
import time
from threading import Event

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from esper.distributed.board import Board
from esper.distributed.deadline import ANSWER, DIAGNOSIS, REPORT, Deadline, Report
from esper.errors import AgreementDeadline
from tests.esper.ranks import run_ranks


class CountingStore(HashStore):
    """Counts what is asked of it."""

    asked = 0

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        self.asked += 1
        return super().compare_set(key, expected_value, desired_value)

    def check(self, keys: list[str]) -> bool:
        self.asked += 1
        return super().check(keys)


def test_only_an_exchange_late_enough_to_be_called_off_asks_the_store() -> None:
    def body(rank: int) -> tuple[int, int]:
        diagnostic = dist.new_group()
        assert isinstance(diagnostic, dist.ProcessGroup)
        store = CountingStore()
        deadline = Deadline((0, 1), rank, diagnostic, Board(store), seconds=2.0)

        def exchange() -> int:
            work = dist.all_reduce(torch.ones(1), async_op=True)
            assert work is not None
            deadline.wait(work, "the test")
            return store.asked

        for _ in range(5):
            prompt = exchange()
        time.sleep(0.3 * rank)
        prompt = exchange()
        time.sleep(1.1)  # more than half the deadline
        return prompt, exchange()

    for outcome in run_ranks(body, 2):
        assert outcome.error is None
        prompt, slow = outcome.value
        assert prompt == 0
        assert slow >= 1


def test_an_exchange_that_completes_after_it_was_called_off_does_not_count() -> None:
    class CalledOffMeanwhile(HashStore):
        def check(self, keys: list[str]) -> bool:
            there = super().check(keys)
            super().compare_set("1/verdict", "", "called off")
            return there

    def body(rank: int) -> None:
        diagnostic = dist.new_group()
        assert isinstance(diagnostic, dist.ProcessGroup)
        work = dist.all_reduce(torch.ones(1), async_op=True)
        assert work is not None
        times = iter((0.0, 1.5, *(2.0,) * 20))
        board = Board(CalledOffMeanwhile())
        Deadline((0,), rank, diagnostic, board, seconds=2.0, clock=lambda: next(times)).wait(work, "the test")

    error = run_ranks(body, 1)[0].error
    assert isinstance(error, AgreementDeadline)
    assert str(error).startswith("the test was called off after 2 s")


def test_a_store_that_does_not_answer_is_given_up_once() -> None:
    release = Event()

    class Stuck(HashStore):
        def check(self, keys: list[str]) -> bool:
            release.wait(5.0)
            return False

    board = Board(Stuck(), patience=0.05)
    begun = time.monotonic()
    assert board.read("key") is None
    assert board.settle("key", "value") is None
    assert board.unanswered == 2
    assert time.monotonic() - begun < 0.5
    release.set()


def test_a_store_that_is_slow_learns_everything_in_order_and_answers_again() -> None:
    release = Event()

    class Slow(HashStore):
        def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
            release.wait(5.0)
            return super().compare_set(key, expected_value, desired_value)

    store = Slow()
    board = Board(store, patience=0.05)
    assert board.settle("verdict", "first") is None
    assert board.settle("verdict", "second") is None
    assert board.settle("here", "waiting") is None
    release.set()
    store.wait(["here"])
    for thread in threading.enumerate():
        if thread.name == "esper-board":
            thread.join()
    assert board.unanswered == 3
    assert board.read("verdict") == "first"
    assert board.read("here") == "waiting"
    assert board.unanswered == 3


def test_a_store_that_is_gone_is_asked_once() -> None:
    asked = []

    class Gone(HashStore):
        def check(self, keys: list[str]) -> bool:
            asked.append(keys)
            raise RuntimeError("Connection reset by peer")

    board = Board(Gone())
    assert board.read("key") is None
    assert board.read("key") is None
    assert (board.unanswered, asked) == (2, [["key"]])


def test_who_has_passed_the_barrier_is_not_missing_though_its_word_has_not_come() -> None:
    def body(rank: int) -> frozenset[int]:
        diagnostic = dist.new_group()
        assert isinstance(diagnostic, dist.ProcessGroup)
        deadline = Deadline((4, 5, 6, 7), 4, diagnostic, Board(HashStore()), seconds=2.0)
        assert deadline._passed("Rank 3 successfully reached monitoredBarrier, but received errors") == set()
        assert deadline._passed("") == set()
        return deadline._passed("[Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 300 ms")

    assert run_ranks(body, 1)[0].value == {4, 6}


def test_what_is_waited_for_after_the_deadline_is_less_than_half_a_second() -> None:
    assert DIAGNOSIS + max(Board(HashStore()).patience, REPORT) + ANSWER < 0.5


def test_the_first_writer_of_a_key_settles_it() -> None:
    store = HashStore()
    assert Board(store).read("key") is None
    assert Board(store).settle("key", "first") == "first"
    assert Board(store).settle("key", "second") == "first"
    assert Board(store).read("key") == "first"


def test_the_report_says_who_did_not_come() -> None:
    report = Report("the agreement of epoch 7", 60.0, 4, (2,), (), "[Rank 0]: Ranks 2 failed")
    assert str(report.error()) == (
        "the agreement of epoch 7 was called off after 60 s: rank 2 of 4 did not come\n"
        "monitored_barrier: [Rank 0]: Ranks 2 failed"
    )
    assert report.error().guilty == (2,)
    told = Report("the start of epoch 2", 5.0, 4, (2,), (), "no", lockstep="rank 2 is late\n  it is asleep")
    assert str(told.error()) == (
        "the start of epoch 2 was called off after 5 s: rank 2 of 4 did not come\n"
        "monitored_barrier: no\nlockstep: rank 2 is late\n  it is asleep"
    )
    late = Report("the agreement of epoch 7", 60.0, 4, (), (3,), "")
    assert str(late.error()).endswith("rank 3 of 4 came only after that")
    assert late.error().guilty == (3,)
    both = Report("the agreement of epoch 7", 60.0, 4, (2,), (3,), "")
    assert str(both.error()).endswith("rank 2 of 4 did not come\nrank 3 came after that")
    assert both.error().guilty == (2,)
    stuck = Report("the agreement of epoch 7", 60.0, 4, (), (), "")
    assert str(stuck.error()).endswith("every rank came, but the exchange did not complete")
    assert stuck.error().guilty == ()
    silent = Report("the agreement of epoch 7", 60.0, 4, (), (), "", store_silent=True)
    assert str(silent.error()) == (
        "the agreement of epoch 7 was called off after 60 s: the job's store does not answer "
        "(it lives with rank 0 or the launcher), so who came is unknown"
    )
