"""The ranks of one host, watched by one of them: the lowest whose watchdog lives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from selectors import EpollSelector

from esper.lockstep.proof.finding import Patience
from esper.lockstep.proof.prove import only_time_decides
from esper.lockstep.record.entry import State
from esper.lockstep.record.ledger import DEFAULT_CAPACITY
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.report.diagnosis import Diagnosis, Report
from esper.lockstep.run.process import state
from esper.lockstep.run.supervisor import Supervisor
from esper.lockstep.watchdog.meeting import Member
from esper.lockstep.watchdog.processes import Processes
from esper.lockstep.watchdog.requests import ByFile
from esper.lockstep.watchdog.skim import Skim

BEAT = 0.5  # seconds between two looks
# Of a watchdog that has not been heard of for so long another takes the lead.
_SILENT = 5 * BEAT
# Who does not lead reads only what would be written over: so many records are a quarter of a ledger.
_BEHIND = DEFAULT_CAPACITY // 4
# A thread that was not run for longer than this was stopped, or the whole machine was.
_GAP = 4 * BEAT


class HostWatch:
    """This rank's part in it. `look` never waits, but for the stacks that a verdict needs."""

    def __init__(
        self, folder: Path, ledgers: Path, rank: int, members: Sequence[Member], patience: float,
        selector: EpollSelector, began: float, internal: tuple[str, ...],
    ) -> None:  # fmt: skip
        """`folder`: what the watchdogs of this run tell each other; `ledgers`: where the ledgers lie;
        `began`: when this one began to look for the others, since when it may have been stopped; `internal`:
        source files in which nobody's line lies.
        """
        self._rank, self._patience = rank, patience
        self._pids = {member.rank: member.pid for member in members}
        self._readers = [LedgerReader(ledgers, member.rank) for member in members]
        for reader in self._readers:
            if reader.open():
                reader.skip_to(reader.begun() or 0)
        self.supervisor = Supervisor(
            ledgers,
            [member.pid for member in members],
            patience=Patience(patience, patience),
            readers=self._readers,
            internal=internal,
            wake=False,  # or what the others wait in would complete: see `WatchThread._continue_stopped`
            show=None,
            requests=ByFile(folder, rank, self._pids, self.beats),
        )
        self._skim = Skim(self._readers, self.supervisor.view)
        self._processes = Processes(selector, self._pids)
        self._positions: list[int] = []
        self.saw_an_end = False  # of a process, in the last look
        self._looked = time.monotonic()
        self._gaps = [(self._looked, self._looked - began)]  # (end, seconds)

    def look(self) -> Diagnosis | None:
        """One look at the others; what came of it, if this rank leads."""
        now = time.monotonic()
        self._mind_the_gap(now)
        self.saw_an_end = self._processes.ended(now, self.supervisor.ended)
        leads = self._leads(now)
        if not leads and not self._falls_behind():
            return None
        judged = self._skim.pass_over()
        if not leads:
            if not judged:  # or it would never come to know the groups, and look at all again each time
                self.supervisor.read()
            return None
        before, self._positions = self._positions, [reader.written() for reader in self._readers]
        moving = len(before) == len(self._positions) and all(
            now_at > then for now_at, then in zip(self._positions, before, strict=True)
        )
        healthy = judged and moving and only_time_decides(self.supervisor.view)
        if healthy:
            return None
        self.supervisor.patience = self._present_patience(now)
        return self.supervisor.poll()

    @property
    def broken(self) -> str | None:
        """The traceback of a failure of our own: nothing is found any more."""
        return self.supervisor.broken

    def report(self) -> Report:
        """What was found."""
        return self.supervisor.report("diverged")

    def beats(self, rank: int, now: float | None = None) -> bool:
        """Whether this rank's watchdog lives and is not stopped."""
        reader = self._readers[rank]
        if self.supervisor.view.ranks[rank].ended is not None or reader.state() is State.OVER:
            return False
        silent = (time.monotonic() if now is None else now) - reader.heartbeat()
        return silent < _SILENT and state(self._pids[rank]) not in "TtXZ"

    def close(self) -> None:
        """Let go of files."""
        self._processes.close()
        for reader in self._readers:
            reader.close()

    def _falls_behind(self) -> bool:
        """Whether the others may soon write over what this rank, which does not lead, has not read."""
        return any(reader.written() - reader.position > _BEHIND for reader in self._readers)

    def _leads(self, now: float) -> bool:
        return not any(self.beats(rank, now) for rank in self._pids if rank < self._rank)

    def _mind_the_gap(self, now: float) -> None:
        """Remember when this thread was not run: a job that was stopped as a whole, or whose machine slept,
        has waited for nobody meanwhile.
        """
        gap, self._looked = now - self._looked, now
        if gap > _GAP:
            self._gaps.append((now, gap))

    def _present_patience(self, now: float) -> Patience:
        self._gaps = [(end, seconds) for end, seconds in self._gaps if now - end <= self._patience]
        seconds = self._patience + sum(seconds for _, seconds in self._gaps)
        return Patience(seconds, seconds)
