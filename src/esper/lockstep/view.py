"""What may be known of a run from outside: N ledgers folded, and how its processes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from esper.lockstep.auditbook import AuditBook
from esper.lockstep.entry import Entry, Kind, Times
from esper.lockstep.mailbox import Wait
from esper.lockstep.matching import Matching


@dataclass(frozen=True)
class Ended:
    """A process that is gone: `code` as waitpid has it (negative: the signal), `at` in seconds of
    CLOCK_MONOTONIC.
    """

    code: int
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
    last: Entry | None = None
    last_of_thread: dict[int, Entry] = field(default_factory=dict)

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
            case Kind.DESTROY:
                self.destroyed.setdefault(entry.group, entry)
            case Kind.RAISED:
                if self.raised is None:
                    self.raised = entry
            case Kind.EXIT:
                self.exit = entry
            case Kind.FAULT:
                self.faults.append(entry)
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

    def state(self, rank: int) -> str:
        """The kernel's letter for the process: R, S, D, T, or X when it is gone."""

    def starved(self, rank: int, since: float) -> float:
        """Of the seconds since `since`, those in which the rank was ready to run and had no processor."""

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

    def refresh(self, entry: Entry) -> Entry | None:
        """The entry with its times as they are now; None where the ring has overwritten it."""
        times = self.live.times(entry)
        if times is None:
            return None
        return entry if times == entry.times else replace(entry, times=times)
