"""What may be known of a run from outside: N ledgers folded, and how its processes are."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from esper.lockstep.proof.auditbook import AuditBook
from esper.lockstep.proof.mailbox import Wait
from esper.lockstep.proof.matching import Matching
from esper.lockstep.record.entry import Entry, Kind, Times

# Calls of a rank in a job that is not followed: with more than that under way the oldest are forgotten.
_MOST_APART = 256


@dataclass(frozen=True)
class Ended:
    """A process that is gone: `code` as waitpid has it (negative: the signal), None where only its parent
    was told; `at` in seconds of CLOCK_MONOTONIC.
    """

    code: int | None
    at: float


@dataclass
class RankView:
    """One rank's events, folded."""

    rank: int
    ended: Ended | None = None
    over: Entry | None = None
    raised: Entry | None = None
    exit: Entry | None = None
    destroyed: dict[str, Entry] = field(default_factory=dict)
    faults: list[Entry] = field(default_factory=list)
    questions: list[Entry] = field(default_factory=list)  # not answered yet
    # Its process is gone, and nobody knows since when or how: known of those whose files alone are left.
    vanished: bool = False
    last: Entry | None = None
    last_of_thread: dict[int, Entry] = field(default_factory=dict)
    # Groups whose other members are not known, and what the rank is there; and what it has entered there.
    apart: dict[str, str] = field(default_factory=dict)
    calls_apart: deque[Entry] = field(default_factory=lambda: deque(maxlen=_MOST_APART))

    @property
    def left(self) -> bool:
        """Whether its program is over, or ends now with all its threads: it will issue nothing more."""
        leaving = [event for event in (self.raised, self.exit) if event is not None]
        return bool(self.ended or self.over or any(event.detail.get("leaves") for event in leaving))

    def fold(self, entry: Entry) -> None:
        """Take one more record of this rank."""
        match entry.kind:
            case Kind.COLLECTIVE:
                self.last = entry
                self.last_of_thread[entry.thread] = entry
                if entry.group in self.apart:
                    self.calls_apart.append(entry)
            case Kind.GROUP:
                if "apart" in entry.detail:
                    self.apart[entry.group] = entry.detail["apart"]
            case Kind.DESTROY:
                self.destroyed.setdefault(entry.group, entry)
            case Kind.RAISED:
                if self.raised is None:
                    self.raised = entry
            case Kind.EXIT:
                self.exit = entry
            case Kind.FAULT:
                self.faults.append(entry)
            case Kind.QUESTION:
                self.questions.append(entry)
            case Kind.OVER:
                self.over = entry
            case _:
                pass


class Live(Protocol):
    """The parts of a rank that no record holds; asked anew at every look."""

    def times(self, entry: Entry) -> Times | None:
        """An entry's times as they are now; None where the ring has overwritten it."""

    def threads(self, rank: int) -> int:
        """Python threads of the rank when it last began to wait."""

    def asleep(self, entry: Entry) -> bool:
        """Whether the entry's thread has slept for a while, and does so inside torch: asked only of an entry
        from C++, and only where its wait would complete a proof.
        """

    def under_way(self, entry: Entry, besides: Collection[int]) -> bool:
        """Whether the entry's thread may be in a call from C++ other than those numbers: one with which the
        backend is not known to be done. Asked like `asleep`.
        """

    def state(self, rank: int) -> str:
        """The kernel's letter for the process: R, S, D, T, or X when it is gone."""

    def starved(self, rank: int, since: float) -> float:
        """Of the seconds since `since`, those in which the rank was ready to run and had no processor."""

    def compiled(self, rank: int, since: float) -> float:
        """Of the seconds since `since`, those in which the rank compiled."""

    def audit(self, entry: Entry) -> tuple[int, ...] | None:
        """The values of an audit in full, while they are kept."""

    def stopped_since(self, rank: int) -> float | None:
        """Since when the process has been found stopped at every look; None when it is not."""


class View:
    """Everything the proof reads."""

    def __init__(self, world_size: int, live: Live) -> None:
        self.ranks = [RankView(rank) for rank in range(world_size)]
        self.matching = Matching()
        self.audits = AuditBook()
        self.live = live
        self.holds_back = False  # what has failed for a peer's sake raises no error before there is a verdict

    def fold(self, entries: Sequence[Entry]) -> None:
        """Take the new records of one rank, oldest first."""
        for entry in entries:
            if entry.kind is Kind.GROUP:
                self.matching.group(entry.group, tuple(entry.detail.get("ranks", ())))
            elif entry.kind is Kind.COLLECTIVE:
                self.matching.add(entry)
            elif entry.kind is Kind.AUDIT:
                self.audits.add(entry, self.matching.members(entry.group))
            self.ranks[entry.rank].fold(entry)

    def waits(self) -> dict[int, list[Wait]]:
        """Who waits in what, now."""
        self.matching.follow_offered(self.refresh)
        return self.matching.waits(self.refresh)

    def unconnected(self, rank: int) -> list[Entry]:
        """The calls of init_process_group that all ranks have entered and that this one has not left."""
        last = self.ranks[rank].last_of_thread.values()
        fresh = (self.refresh(entry) for entry in last if entry.op == "init_process_group")
        return [
            entry
            for entry in fresh
            if entry is not None
            and entry.blocks()
            and entry.group not in self.ranks[rank].apart
            and self.matching.slot(entry.group, entry.sequence) is None
        ]

    def refresh(self, entry: Entry) -> Entry | None:
        """The entry with its times as they are now; None where the ring has overwritten it."""
        times = self.live.times(entry)
        if times is None:
            return None
        return entry if times == entry.times else entry._replace(times=times)
