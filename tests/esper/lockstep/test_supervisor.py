"""The supervisor over ledgers that the test writes itself, and processes that it starts."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.lockstep.proof.finding import Patience
from esper.lockstep.rank.questions import asker_of
from esper.lockstep.rank.recorder import GroupRecord, Recorder
from esper.lockstep.record.answers import read_answer
from esper.lockstep.record.entry import Flag, Kind
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.run.process import ending, state
from esper.lockstep.run.supervisor import Supervisor

RANKS = 3
ENDLESS = Patience(1e9, 1e9)


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[list[Ledger]]:
    ledgers = [Ledger(tmp_path, rank, RANKS) for rank in range(RANKS)]
    yield ledgers
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(RANKS)]
    while any(state(one.pid) != "S" for one in processes):
        pass  # one that is kept from a processor is not late
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def enters(ledger: Ledger, op: str = "all_reduce", sequence: int = 0) -> None:
    Recorder(ledger).event(Kind.GROUP, group="default", ranks=tuple(range(RANKS)))
    string = ledger.string
    ledger.append(
        Kind.COLLECTIVE, string("default"), sequence, string(op), thread=1, flags=int(Flag.WAITED), elements=4
    )


def killed_and_not_reaped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5.0
    while state(process.pid) != "Z":
        assert time.monotonic() < end


def test_a_process_that_is_ending_is_waited_for(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    """Rank 2 is killed, rank 1 leaves because of it, and rank 1's end can be read first."""
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    enters(ledgers[0])
    assert supervisor.poll() is None
    killed_and_not_reaped(sleepers[2])
    assert ending(sleepers[2].pid)
    Recorder(ledgers[1]).leaving(1)
    left = time.monotonic()
    while time.monotonic() < left + 0.005:  # more than what counts as the same moment
        assert supervisor.poll() is None
    supervisor.ended(2, sleepers[2].wait())
    diagnosis = supervisor.poll()
    assert diagnosis is not None
    assert (diagnosis.kind, diagnosis.guilty) == ("crashed", (2,))


def test_who_is_guilty_is_not_waited_for(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    enters(ledgers[0])
    enters(ledgers[2])
    Recorder(ledgers[1]).leaving(1)
    killed_and_not_reaped(sleepers[1])
    diagnosis = supervisor.poll()
    assert diagnosis is not None
    assert (diagnosis.kind, diagnosis.guilty) == ("exited", (1,))
    assert supervisor.poll() is diagnosis


def test_a_rank_that_asks_is_told_by_its_own_patience_and_nobody_is_judged(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    enters(ledgers[0])
    enters(ledgers[2])
    hopeful = asker_of(Recorder(ledgers[0]))(60.0)
    assert hopeful(0.0) is None  # nobody has looked yet
    assert supervisor.poll() is None
    assert read_answer(tmp_path, 0, 2) is None  # it may come to be late
    answers = [asker_of(Recorder(ledgers[rank]))(0.0) for rank in (0, 2)]
    assert supervisor.poll() is None
    told = {answer(0.0) for answer in answers}
    assert len(told) == 1
    assert str(told.pop()).startswith("rank 1 is late for all_reduce #0: frozen\n")
    assert supervisor.diagnosis is None
    assert not sleepers[1].poll()
    assert supervisor.poll() is None
    assert str(hopeful(0.0)).startswith("rank 1 is late")  # it was the same occasion


def test_a_rank_that_has_much_patience_is_told_nothing_after_a_while(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    enters(ledgers[0])
    enters(ledgers[2])
    answer = asker_of(Recorder(ledgers[0]))(60.0)
    while read_answer(tmp_path, 0, 2) is None:
        assert supervisor.poll() is None
    assert read_answer(tmp_path, 0, 2) == ""
    assert answer(0.0) is None


def test_a_rank_that_asks_too_early_is_told_when_its_patience_is_over(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    """As one does that gives up while the late one has had no processor for a part of that time."""
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    enters(ledgers[0])
    enters(ledgers[2])
    answer = asker_of(Recorder(ledgers[0]))(0.3)
    while read_answer(tmp_path, 0, 2) is None:
        assert supervisor.poll() is None
    assert str(answer(0.0)).startswith("rank 1 is late for all_reduce #0: frozen\n")


def test_an_answer_that_can_not_be_written_ends_nothing(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    enters(ledgers[0])
    (tmp_path / "rank0.2.unfinished").mkdir()
    answer = asker_of(Recorder(ledgers[0]))(60.0)
    assert supervisor.poll() is None
    assert supervisor.broken is None
    assert answer(0.0) is None


def test_a_rank_that_asks_after_the_verdict_of_an_observed_run_is_told_that(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    enters(ledgers[0])
    enters(ledgers[2])
    Recorder(ledgers[1]).leaving(1)
    diagnosis = supervisor.poll()
    assert diagnosis is not None
    answer = asker_of(Recorder(ledgers[2]))(60.0)
    assert supervisor.poll() is diagnosis
    assert answer(0.0) == diagnosis.message


def test_only_what_follows_the_begin_of_its_name_counts(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    pids = [one.pid for one in sleepers]
    for ledger in ledgers:
        Recorder(ledger).begin("first")
        enters(ledger, "barrier" if ledger.rank == 0 else "all_reduce")
    supervisor = Supervisor(tmp_path, pids, patience=ENDLESS, begun="second")
    assert supervisor.poll() is None
    for ledger in ledgers:
        Recorder(ledger).begin("second")
        enters(ledger, "barrier" if ledger.rank == 2 else "all_reduce")
    diagnosis = supervisor.poll()
    assert diagnosis is not None
    assert (diagnosis.kind, diagnosis.guilty) == ("mismatch", (2,))


def test_a_rank_that_wrote_the_ring_full_since_it_began_is_not_absent(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    small = [Ledger(tmp_path, rank, RANKS, capacity=16) for rank in range(RANKS)]
    for name in ("same name", "same name"):
        readers = [LedgerReader(tmp_path, rank) for rank in range(RANKS)]
        for reader in readers:
            reader.skip()
        supervisor = Supervisor(
            tmp_path, [one.pid for one in sleepers], patience=ENDLESS, begun=name, readers=readers
        )
        assert supervisor.poll() is None
        for ledger in small:
            recorder = Recorder(ledger)
            recorder.begin(name)
            group = GroupRecord("default", ledger.string("default"), tuple(range(RANKS)))
            recorder.event(Kind.GROUP, group="default", ranks=group.members)
            for _ in range(40 if ledger.rank == 1 else 2):
                recorder.collective(group, "barrier", None, None, None, 0, -1, -1, 0, 0)
        supervisor.poll()
        assert supervisor.view.ranks[1].last is not None
        assert [slot for slot in supervisor.view.matching.open() if 1 in slot.absent] == []


def test_a_rank_that_has_not_begun_is_only_not_there_yet(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    first = Ledger(tmp_path, 0, RANKS)
    enters(first)
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=ENDLESS)
    assert supervisor.poll() is None
    report = supervisor.report("clean").to_json()
    assert [end["last"]["op"] for end in report["ranks"]] == ["all_reduce", None, None]
    first.close()


def test_who_was_not_run_itself_accuses_nobody_of_that_time(
    tmp_path: Path, ledgers: list[Ledger], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    """A whole session that is stopped at a terminal, say."""
    patience = Patience(1.0, 1.0)
    supervisor = Supervisor(tmp_path, [one.pid for one in sleepers], patience=patience, gap=0.5)
    for ledger in ledgers[:2]:
        enters(ledger)
    assert supervisor.poll() is None
    time.sleep(1.5)
    assert supervisor.poll() is None
    end = time.monotonic() + 10.0
    while (diagnosis := supervisor.poll()) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (diagnosis.kind, diagnosis.guilty) == ("frozen", (2,))
