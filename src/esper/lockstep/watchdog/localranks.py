"""The ranks of this host, as one of them sees the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from selectors import EpollSelector

from esper.lockstep.record.entry import State
from esper.lockstep.record.ledger import DEFAULT_CAPACITY
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.run.process import state
from esper.lockstep.watchdog.meeting import Member
from esper.lockstep.watchdog.processes import Processes

BEAT = 0.5  # seconds between two looks
# One that was heard of so recently has not been stopped for longer.
_HEARD = 1.2 * BEAT
# Of a watchdog that has not been heard of for so long another takes the lead.
_SILENT = 5 * BEAT
# Who does not lead reads only what would be written over: so many records are a quarter of a ledger.
_BEHIND = DEFAULT_CAPACITY // 4
# A thread that was not run for longer than this was stopped, or the whole machine was.
_GAP = 4 * BEAT


class LocalRanks:
    """Their ledgers and processes, and who of them leads: the lowest whose watchdog lives."""

    def __init__(
        self, ledgers: Path, rank: int, members: Sequence[Member], selector: EpollSelector, began: float
    ) -> None:
        """`members`: those of this host; `began`: when this rank began to look for the others, since when it
        may have been stopped.
        """
        self.rank = rank
        self.pids = {member.rank: member.pid for member in members}
        self.readers = {member.rank: LedgerReader(ledgers, member.rank) for member in members}
        for reader in self.readers.values():
            if reader.open():
                reader.skip_to(reader.begun() or 0)
        self._processes = Processes(selector, self.pids)
        self._gone: set[int] = set()
        self._looked = time.monotonic()
        self._gaps = [(self._looked, self._looked - began)]  # (end, seconds)
        self.was_away = False  # this thread was not run for a while before the last look

    def look(self, now: float, tell: Callable[[int, int | None], None]) -> bool:
        """Call `tell` with each rank that has ended, and how; whether one has just now."""
        gap, self._looked = now - self._looked, now
        self.was_away = gap > _GAP
        if self.was_away:
            self._gaps.append((now, gap))

        def note(rank: int, code: int | None) -> None:
            self._gone.add(rank)
            tell(rank, code)

        return self._processes.ended(now, note)

    def leads(self, now: float) -> bool:
        """Whether this rank does. A lower one that was stopped since it was heard of leads until the next
        look: asking the kernel about it takes longer than all else that is done where all is well.
        """
        lower = [rank for rank in self.pids if rank < self.rank]
        return not any(self._heard(rank, now) or self.beats(rank, now) for rank in lower)

    def is_last(self, leaves: Callable[[int], bool]) -> bool:
        """Whether nobody else watches any more, who is not about to leave."""
        return not any(self.beats(rank) and not leaves(rank) for rank in self.pids if rank != self.rank)

    def beats(self, rank: int, now: float | None = None) -> bool:
        """Whether this rank is of this host, and its watchdog lives and is not stopped."""
        if rank not in self.pids or rank in self._gone or self.readers[rank].state() is State.OVER:
            return False
        silent = (time.monotonic() if now is None else now) - self.readers[rank].heartbeat()
        return silent < _SILENT and state(self.pids[rank]) not in "TtXZ"

    def _heard(self, rank: int, now: float) -> bool:
        """Whether its watchdog has said something since this one looked last, or about then."""
        if rank in self._gone or self.readers[rank].state() is State.OVER:
            return False
        return now - self.readers[rank].heartbeat() < _HEARD

    def fall_behind(self) -> bool:
        """Whether one may soon write over what this rank has not read."""
        return any(reader.written() - reader.position > _BEHIND for reader in self.readers.values())

    def gaps(self, now: float, within: float) -> float:
        """For how many of the last `within` seconds this thread was not run: a job that was stopped as a
        whole, or whose machine slept, has waited for nobody meanwhile.
        """
        self._gaps = [(end, seconds) for end, seconds in self._gaps if now - end <= within]
        return sum(seconds for _, seconds in self._gaps)

    def close(self) -> None:
        """Let go of files."""
        self._processes.close()
        for reader in self.readers.values():
            reader.close()
