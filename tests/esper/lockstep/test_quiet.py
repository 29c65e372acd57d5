"""What follows a run without Python: the same verdicts as without it, and far fewer records read."""

from __future__ import annotations

import os
import random
import selectors
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.lockstep.proof.finding import Patience
from esper.lockstep.rank.recorder import GroupRecord, Recorder
from esper.lockstep.record.entry import Flag, Kind, Time
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.run import quiet, supervisor
from esper.lockstep.run.supervisor import Supervisor
from tests.esper.lockstep.warm import warm_python
from tests.forked import MARK

ENDLESS = Patience(1e9, 1e9)
RANKS = 3
Found = tuple[str, tuple[int, ...]] | None  # kind and guilty ranks

pytestmark = pytest.mark.skipif(
    not quiet.library_path().is_file(), reason="not built: python -m esper.lockstep build"
)


class Rank:
    """Writes what a rank would that issues the given calls and comes back from each."""

    def __init__(self, folder: Path, rank: int, capacity: int = 1 << 13) -> None:
        self.ledger = Ledger(folder, rank, RANKS, capacity)
        self.recorder = Recorder(self.ledger)
        self.groups: dict[str, GroupRecord] = {}
        # Ids of its own for the same names.
        for number in range(rank):
            self.ledger.string(f"only of rank {rank}, {number}")

    def group(self, name: str, *members: int) -> None:
        self.groups[name] = GroupRecord(name, self.ledger.string(name), members)
        self.recorder.event(Kind.GROUP, group=name, ranks=members)

    def call(self, op: str = "all_reduce", group: str = "all", *, back: bool = True, peer: int = -1) -> int:
        number = self.recorder.collective(
            self.groups[group], op, None, "float32", (4,), 4, -1, peer, 0, int(Flag.WAITED)
        )
        if back:
            self.ledger.stamp(number, Time.WAIT_ENDED)
        return number

    def refused(self, number: int, group: str = "all") -> None:
        self.ledger.stamp(number, Time.WAIT_ENDED, int(Flag.REFUSED | Flag.FAILED))
        record = self.groups[group]
        record.next, record.chain = record.next - 1, record.chain_before


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[Rank]]:
    made = [Rank(tmp_path, rank) for rank in range(RANKS)]
    for one in made:
        one.group("all", *range(RANKS))
    yield made
    for one in made:
        one.ledger.close()


class Watched:
    """A supervisor that waits for a file which is never ready, over processes that live: this one."""

    def __init__(self, folder: Path) -> None:
        self.supervisor = Supervisor(folder, [os.getpid()] * RANKS, patience=ENDLESS)
        self._ends = os.pipe()
        self._selector = selectors.EpollSelector()
        self._selector.register(self._ends[0], selectors.EVENT_READ)

    def turn(self) -> float:
        """Poll and wait once; the seconds waited."""
        self.supervisor.poll()
        begun = time.monotonic()
        self.supervisor.wait(self._selector)
        return time.monotonic() - begun

    def settle(self, turns: int = 4) -> None:
        for _ in range(turns):
            self.turn()

    @property
    def found(self) -> Found:
        assert self.supervisor.broken is None, self.supervisor.broken
        one = self.supervisor.diagnosis
        return None if one is None else (one.kind, one.guilty)

    @property
    def follows(self) -> bool:
        return self.supervisor._quiet._handle is not None

    def close(self) -> None:
        self.supervisor._quiet.close()
        self._selector.close()
        for end in self._ends:
            os.close(end)


@pytest.fixture
def watched(tmp_path: Path, ranks: list[Rank]) -> Iterator[Watched]:
    one = Watched(tmp_path)
    for each in ranks:  # the first call in a group wakes it: its name is new
        each.call()
    one.settle(RANKS + 2)
    assert one.follows
    yield one
    one.close()


def read(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts records as they are decoded."""
    numbers: list[int] = []
    for reader in watched.supervisor._readers:
        decode = reader._entry

        def noted(number: int, fields: tuple[object, ...], decode: object = decode) -> object:
            numbers.append(number)
            return decode(number, fields)  # type: ignore[operator]

        monkeypatch.setattr(reader, "_entry", noted)
    return numbers


def test_healthy_calls_wake_nobody_and_are_hardly_read(
    ranks: list[Rank], watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = read(watched, monkeypatch)

    def thousand() -> None:
        for _ in range(1000):
            for one in ranks:
                one.call()

    writer = threading.Timer(0.02, thousand)
    writer.start()
    assert watched.turn() > 0.9 * quiet._LONGEST
    writer.join()
    watched.settle(2)
    assert len(decoded) < RANKS * (quiet._KEPT + 4)
    for one in ranks:
        one.call("barrier" if one is ranks[1] else "all_reduce")
    watched.settle(2)
    assert watched.found == ("mismatch", (1,))
    diagnosis = watched.supervisor.diagnosis
    assert diagnosis is not None
    assert diagnosis.sequence == 1001


def test_a_contradiction_ends_the_wait(ranks: list[Rank], watched: Watched) -> None:
    for one in ranks:
        one.call()
    for one in ranks:
        one.call("barrier" if one is ranks[2] else "all_reduce", back=False)
    assert watched.turn() < 0.5 * quiet._UNMOVED
    watched.supervisor.poll()
    assert watched.found == ("mismatch", (2,))


def test_what_is_of_another_kind_ends_the_wait(ranks: list[Rank], watched: Watched) -> None:
    for one in ranks:
        one.call()
    watched.settle(1)
    ranks[0].call(back=False)
    ranks[1].recorder.over()
    assert watched.turn() < 0.5 * quiet._UNMOVED
    assert not watched.supervisor._only_time_decides


def test_two_groups_open_at_once_end_the_wait(ranks: list[Rank], watched: Watched) -> None:
    for one in ranks[:2]:
        one.group("pair", 0, 1)
        one.call(group="pair")
    watched.settle()
    ranks[0].call(group="pair", back=False)
    ranks[2].call(back=False)
    assert watched.turn() < 0.5 * quiet._UNMOVED
    assert watched.supervisor.poll() is None
    assert not watched.supervisor._only_time_decides  # so it polls


def test_a_file_that_is_ready_ends_the_wait(ranks: list[Rank], watched: Watched) -> None:
    os.write(watched._ends[1], b"x")
    assert watched.turn() < 0.5 * quiet._UNMOVED


def test_who_is_waited_for_is_looked_at_soon(ranks: list[Rank], watched: Watched) -> None:
    ranks[0].call(back=False)
    assert watched.turn() < 0.5 * quiet._LONGEST
    assert [wait.entry.rank for ones in watched.supervisor.view.waits().values() for wait in ones] == [0]


def test_a_refused_call_is_polled_for_from_then_on(ranks: list[Rank], watched: Watched) -> None:
    ranks[0].refused(ranks[0].call())
    for _ in range(40):
        for one in ranks:
            one.call()
    watched.settle()
    assert not watched.follows
    for one in ranks:
        one.call("barrier" if one is ranks[1] else "all_reduce")
    watched.settle(2)
    assert watched.found == ("mismatch", (1,))


def test_a_ring_that_was_written_full_meanwhile_is_polled_for(tmp_path: Path) -> None:
    small = [Rank(tmp_path, rank, capacity=64) for rank in range(RANKS)]
    for one in small:
        one.group("all", *range(RANKS))
    watched = Watched(tmp_path)
    watched.settle()
    for _ in range(100):
        for one in small:
            one.call()
    watched.settle()
    assert not watched.follows
    for one in small:
        one.call("barrier" if one is small[1] else "all_reduce")
    watched.settle(2)
    assert watched.found == ("mismatch", (1,))
    watched.close()


def test_the_last_record_of_each_thread_is_known_though_it_was_passed_over(
    ranks: list[Rank], watched: Watched
) -> None:
    helper = {one: one.recorder.thread() + 7 for one in ranks}
    for one in ranks:
        one.recorder._native_thread.id = helper[one]
        one.call()
        del one.recorder._native_thread.id
    for _ in range(200):
        for one in ranks:
            one.call()
    watched.settle()
    for rank, one in enumerate(ranks):
        last = watched.supervisor.view.ranks[rank].last_of_thread
        assert last[helper[one]].sequence == 1
        assert last[one.recorder.thread()].sequence == 201


def test_random_runs_are_judged_as_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that go on at random, of which one may call something else or nothing at some moment."""
    for name, seconds in (("_TICK", 0.0005), ("_UNMOVED", 0.001), ("_LONGEST", 0.002)):
        monkeypatch.setattr(quiet, name, seconds)
    monkeypatch.setattr(quiet, "_KEPT", 3)
    for name in ("_POLL", "_QUIET_POLL"):
        monkeypatch.setattr(supervisor, name, 0.001)
    for name in ("_IDLE_PROOF", "_QUIET_PROOF"):  # all that was read is judged at once
        monkeypatch.setattr(supervisor, name, 0.0)
    seen: set[str | None] = set()
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        quietly, polled = one_random_run(folder, random.Random(seed), monkeypatch)
        assert quietly == polled, seed
        seen.add(None if polled is None else polled[0])
    assert seen == {None, "mismatch", "missing"}


def one_random_run(
    folder: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> tuple[Found, Found]:
    ranks = [Rank(folder, rank) for rank in range(RANKS)]
    for one in ranks:
        one.group("all", *range(RANKS))
    for one in ranks[:2]:
        one.group("pair", 0, 1)
    watches = Watched(folder), Watched(folder)
    monkeypatch.setattr(watches[1].supervisor._quiet, "wait", lambda file: False)
    for rank, name, op, back in calls_at_random(chance):
        if op == "ends":
            ranks[rank].recorder.over()
        elif name in ranks[rank].groups:
            ranks[rank].call(op, name, back=back)
        if chance.random() < 0.3:
            for watched in watches:
                watched.turn()
    for watched in watches:
        watched.settle(3)
        watched.close()
    for one in ranks:
        one.ledger.close()
    return watches[0].found, watches[1].found


def calls_at_random(chance: random.Random) -> Iterator[tuple[int, str, str, bool]]:
    """Rank, group, operation and whether it comes back, of ranks that are at most three calls apart."""
    names = ["all", "pair"][: chance.randint(1, 2)]
    calls = [(chance.choice(names), chance.choice(("all_reduce", "barrier"))) for _ in range(40)]
    wrong, guilty, where = chance.choice(("nothing", "op", "end")), chance.randrange(2), chance.randrange(40)
    at = [0] * RANKS
    while min(at) < len(calls):
        rank = chance.choice([one for one in range(RANKS) if at[one] < min(min(at) + 3, len(calls))])
        name, op = calls[at[rank]]
        if (rank, at[rank]) == (guilty, where) and wrong == "end":
            yield rank, name, "ends", False
            yield from ((other, "all", op, False) for other in range(RANKS) if other != rank)
            return
        if (rank, at[rank]) == (guilty, where) and wrong == "op":
            op = "broadcast"
        yield rank, name, op, True
        at[rank] += 1


def test_it_is_used_for_programs_and_does_not_change_their_end(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "for step in range(600):\n"
        "    dist.all_reduce(torch.ones(1))\n"
        "if dist.get_rank() == 1:\n"
        "    dist.barrier()\n"
        "dist.all_reduce(torch.ones(1))\n"
    )
    noted = tmp_path / "noted"
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from esper.lockstep import cli\n"
        "from esper.lockstep.record.reader import LedgerReader\n"
        "decoded = []\n"
        "decode = LedgerReader._entry\n"
        "def noted(self, *fields):\n"
        "    decoded.append(self.rank)\n"
        "    return decode(self, *fields)\n"
        "LedgerReader._entry = noted\n"
        "try:\n"
        "    cli.main(sys.argv[2:])\n"
        "finally:\n"
        "    Path(sys.argv[1]).write_text(str(len(decoded)))\n"
    )
    options = ["run", "--nproc", "2", "--", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: uuid.uuid4().hex}
    done = warm_python([str(launcher), str(noted), *options], environment, 120, starts=2)
    assert done.returncode == 3, done.stderr
    assert "#600" in done.stderr
    assert int(noted.read_text()) < 900  # of more than 1,200
