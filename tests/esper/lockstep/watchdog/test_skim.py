"""Of what all ranks have entered alike nothing is read, and nothing else is left unread for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esper.lockstep.proof.view import View
from esper.lockstep.record.entry import Kind
from esper.lockstep.record.ledger import GROUP_TEXT, Ledger
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.watchdog.skim import Skim
from tests.esper.lockstep.story import Story

RANKS = 2
RECORDS = 300  # that a ledger holds


class Job:
    """Two ranks that write ledgers, and one that looks."""

    def __init__(self, folder: Path) -> None:
        self.ledgers = [Ledger(folder, rank, RANKS, RECORDS) for rank in range(RANKS)]
        self.readers = [LedgerReader(folder, rank) for rank in range(RANKS)]
        self.view = View(RANKS, Story(RANKS))
        self.skim = Skim(self.readers, self.view)
        self._next: dict[tuple[int, str], int] = {}

    def group(self, name: str) -> None:
        for ledger in self.ledgers:
            text = json.dumps({"ranks": list(range(RANKS))})
            ledger.string((GROUP_TEXT, name, text))  # as a rank writes it
            ledger.append(Kind.GROUP, ledger.string(name), detail=ledger.string(text))

    def enter(self, rank: int, name: str, times: int = 1, digest: int = 1000, thread: int = 1) -> None:
        ledger = self.ledgers[rank]
        for _ in range(times):
            sequence = self._next[rank, name] = self._next.get((rank, name), -1) + 1
            ledger.append(
                Kind.COLLECTIVE,
                ledger.string(name),
                sequence,
                ledger.string("all_reduce"),
                digest=digest + sequence,
                thread=thread,
            )

    def audit(self, rank: int, digest: int) -> None:
        ledger = self.ledgers[rank]
        position = self._next[rank, "default"] + 1
        name, forward, model = (ledger.string(text) for text in ("default", "forward", "model"))
        ledger.append(Kind.AUDIT, name, position, forward, tag=model, peer=0, digest=digest)

    def read(self) -> None:
        for reader in self.readers:
            self.view.fold(list(reader.new()))

    def unread(self) -> list[int]:
        return [reader.written() - reader.position for reader in self.readers]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path)
    for name in ("default", "models"):
        job.group(name)
    return job


def step(job: Job, times: int) -> None:
    for rank in range(RANKS):
        job.enter(rank, "default", times)


def test_who_has_never_read_knows_the_groups_from_the_tables(job: Job) -> None:
    step(job, 100)
    assert job.skim.pass_over()
    assert all(0 < count < 20 for count in job.unread())
    assert job.view.matching.members("default") == (0, 1)


def test_what_all_have_entered_alike_is_passed_over(job: Job) -> None:
    job.read()
    step(job, 100)
    assert job.skim.pass_over()
    assert all(0 < count < 20 for count in job.unread())


def test_the_last_call_of_each_thread_is_read_when_asked_for(job: Job) -> None:
    job.read()
    for rank in range(RANKS):
        job.enter(rank, "default", 3, thread=2)
    step(job, 20)
    assert job.skim.pass_over()
    seen = job.view.ranks[0]
    assert not seen.last_of_thread
    job.skim.read_last()
    assert seen.last is not None
    found = {thread: entry.number for thread, entry in seen.last_of_thread.items()}
    assert found == {1: seen.last.number, 2: 4}


def test_the_last_call_of_a_thread_is_read_before_it_is_written_over(job: Job) -> None:
    job.read()
    for rank in range(RANKS):
        job.enter(rank, "default", thread=2)
    for _ in range(RECORDS // 50 + 2):
        step(job, 50)
        assert job.skim.pass_over()
    job.skim.read_last()
    assert job.view.ranks[0].last_of_thread[2].number == 2


def test_a_call_that_others_made_before_the_last_look_holds_nothing_up(job: Job) -> None:
    job.enter(0, "models")
    job.read()  # the other has not come to it yet
    job.enter(1, "models")
    for _ in range(3):
        step(job, 50)
        assert job.skim.pass_over()
    assert all(count < 20 for count in job.unread())
    assert job.view.matching.in_one_order()


def test_a_group_that_is_not_used_any_more_holds_nothing_up(job: Job) -> None:
    job.read()
    for rank in range(RANKS):
        job.enter(rank, "models", 5)
    for _ in range(3):
        step(job, 50)
        assert job.skim.pass_over()
    assert all(count < 20 for count in job.unread())


def test_audits_behind_a_late_call_are_compared(job: Job) -> None:
    job.enter(0, "models")
    job.read()
    job.enter(1, "models")
    step(job, 10)
    for rank in range(RANKS):
        job.audit(rank, digest=rank)
    step(job, 20)
    assert job.skim.pass_over()
    assert len(list(job.view.audits.differing())) == 1


def test_what_differs_is_left_to_be_read(job: Job) -> None:
    job.read()
    step(job, 50)
    job.enter(0, "default")
    job.enter(1, "default", digest=7)
    assert not job.skim.pass_over()
    assert job.unread() == [51, 51]


def test_what_was_written_over_is_left_to_be_read(job: Job) -> None:
    job.read()
    step(job, 50)
    job.enter(1, "default", RECORDS)
    assert not job.skim.pass_over()
