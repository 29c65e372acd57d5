"""Which host judges for all: the first of which something is heard. Each reads that one's summary only."""

from __future__ import annotations

from esper.lockstep.postmortem.afterwards import SILENT_AFTER
from esper.lockstep.watchdog.hosts.board import Board
from esper.lockstep.watchdog.hosts.lost import QUIET_AFTER


class Succession:
    """As one host sees it."""

    def __init__(self, own: int) -> None:
        self._own, self._chief = own, 0
        self._number: int | None = None
        self._heard: float | None = None
        self.before: tuple[int, float] | None = None  # who led before, and when it was heard of last

    def leads(self, now: float, board: Board, *, soon: bool = False) -> bool:
        """Whether this host does. `soon`: a rank here waits, or a call has failed, and who is to ask why is
        not waited for long. Raises RuntimeError where the store does not answer.
        """
        if self._chief == self._own:
            return True
        summary = board.says(self._chief)
        if self._heard is None or (summary is not None and summary.number != self._number):
            self._heard = now
            self._number = None if summary is None else summary.number
        over = summary is not None and summary.over
        if over or now - self._heard > (QUIET_AFTER if soon else SILENT_AFTER):
            self.before = self._chief, self._heard
            self.yield_to(self._chief + 1, now)
        return self._chief == self._own

    def yield_to(self, host: int, now: float) -> None:
        """Take that one for the first."""
        self._chief, self._number, self._heard = host, None, now
