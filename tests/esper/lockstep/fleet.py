"""What ranks would have left: real files of a run, told event by event, on a clock of the test's own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from esper.lockstep.rank.recorder import VICTIM, GroupRecord, Recorder
from esper.lockstep.record.audits import Audits
from esper.lockstep.record.entry import Flag, Kind, Site, State, Time
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.manifest import Manifest, Waits

RUN = bytes(range(16))
_TICK = 0.01


class Clock:
    """In place of the module `time` in the ledger's: that of the rank which writes."""

    def __init__(self, booted: Callable[[int], float], wall: Callable[[int], float]) -> None:
        self.now, self.epoch = 10_000.0, time.time() - 10_000.0
        self.rank = 0
        self._booted, self._wall = booted, wall

    def monotonic(self) -> float:
        return self.now + self._booted(self.rank)

    def time(self) -> float:
        return self.now + self.epoch + self._wall(self.rank)


@dataclass
class Fleet:
    """Ranks that write; every event takes a hundredth of a second."""

    run_dir: Path
    world_size: int
    clock: Clock
    ledgers: list[Ledger]
    groups: dict[tuple[int, str], GroupRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recorders = [Recorder(ledger) for ledger in self.ledgers]
        for rank, recorder in enumerate(self.recorders):
            self.clock.rank = rank
            recorder.begin("train.py")
            recorder.threads = lambda: 1  # type: ignore[method-assign]
        self.group("default", *range(self.world_size))

    def group(self, name: str, *members: int) -> None:
        for rank in members:
            self.pass_time(_TICK, rank)
            self.recorders[rank].event(Kind.GROUP, group=name, ranks=members)
            for key in (name, f"p2p:{name}"):
                self.groups[rank, key] = GroupRecord(key, self.ledgers[rank].string(key), members)

    def call(
        self,
        rank: int,
        op: str = "all_reduce",
        group: str = "default",
        *,
        elements: int = 4,
        tag: str | None = None,
        flags: int = int(Flag.WAITED),
        line: int = 1,
        peer: int = -1,
        root: int = -1,
    ) -> int:
        """A collective is entered and, unless `flags` say otherwise, waited for; its record's number."""
        self.pass_time(_TICK, rank)
        site = self.ledgers[rank].string(Site("/train.py", line, "step"))
        key = group if peer < 0 else f"p2p:{group}"
        with patch("esper.lockstep.rank.recorder.current.tag", tag):
            return self.recorders[rank].collective(
                self.groups[rank, key], op, None, "torch.float32", (4,), elements, root, peer, site, flags,
                thread=rank + 1,
            )  # fmt: skip

    def come_back(self, rank: int, number: int, *, failed: bool = False) -> None:
        self.pass_time(_TICK, rank)
        self.ledgers[rank].stamp(number, Time.WAIT_ENDED, int(Flag.FAILED) if failed else 0)

    def together(self, times: int = 1, group: str = "default", *, beat: bool = True, **call: object) -> None:
        """All members go through `times` collectives."""
        members = self.groups[0, group].members
        for _ in range(times):
            entered = [(rank, self.call(rank, group=group, **call)) for rank in members]  # type: ignore[arg-type]
            for rank, number in entered:
                self.come_back(rank, number)
            if beat:
                self.beat()

    def audit(self, rank: int, digest: int) -> None:
        self.pass_time(_TICK, rank)
        detail = json.dumps({"names": ["alpha"], "what": "alpha", "value": str(digest)})
        number = Audits(self.run_dir, rank).append([digest])
        self.recorders[rank].audited("default", 0, "forward", "alpha", detail, 0, number, digest, 0)

    def loses_connection(self, rank: int, number: int) -> None:
        """A peer's end breaks the call, and that ends the program."""
        self.come_back(rank, number, failed=True)
        error = RuntimeError("Connection closed by peer")
        setattr(error, VICTIM, True)
        self.raises(rank, error)

    def raises(self, rank: int, error: BaseException, *, over: bool = True) -> None:
        self.pass_time(_TICK, rank)
        try:
            raise error
        except BaseException as caught:  # noqa: BLE001  any that a program may raise
            self.recorders[rank].raised(caught)
        if over:
            self.over(rank)

    def over(self, *ranks: int) -> None:
        for rank in ranks or range(self.world_size):
            self.pass_time(_TICK, rank)
            self.recorders[rank].over()

    def beat(self, *ranks: int) -> None:
        """These ranks, or all, say that they are there."""
        for rank in ranks or range(self.world_size):
            self.clock.rank = rank
            self.ledgers[rank].heartbeat()

    def live_on(self, seconds: float, *ranks: int) -> None:
        """Only time passes, in which these ranks, or all, say that they are there."""
        for _ in range(int(seconds)):
            self.pass_time(1.0)
            self.beat(*ranks)

    def pass_time(self, seconds: float, rank: int = 0) -> None:
        """Then it is `rank` that writes."""
        self.clock.now += seconds
        self.clock.rank = rank


@contextmanager
def fleet(
    run_dir: Path,
    world_size: int = 4,
    *,
    run: bytes = RUN,
    capacity: int = 64,
    patience: float = 60.0,
    manifest: bool = True,
    started: float | None = None,
    hosts: Callable[[int], str] = lambda rank: "a",
    booted: Callable[[int], float] = lambda rank: 0.0,
    wall: Callable[[int], float] = lambda rank: 0.0,
) -> Iterator[Fleet]:
    """The files of one run; each rank is RUNNING. `booted`: by how many seconds the clock since its host was
    started is ahead; `wall`: by how many the clock on its wall is.
    """
    clock = Clock(booted, wall)
    run_dir.mkdir(parents=True, exist_ok=True)
    with patch("esper.lockstep.record.ledger.time", clock):
        if manifest:
            waits = Waits(patience, patience, 600.0)
            names = {rank: hosts(rank) for rank in range(world_size)}
            began = clock.time() if started is None else started
            Manifest(run.hex(), world_size, began, waits, names).write(run_dir)
        ledgers = []
        for rank in range(world_size):
            clock.rank = rank
            ledgers.append(Ledger(run_dir, rank, world_size, capacity, run=run))
            ledgers[-1].set_state(State.RUNNING)
        try:
            yield Fleet(run_dir, world_size, clock, ledgers)
        finally:
            for ledger in ledgers:
                ledger.close()
