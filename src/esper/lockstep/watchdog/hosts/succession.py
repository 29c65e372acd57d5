"""Which host judges for all: the first of which something is heard. Each reads that one's summary only."""

from __future__ import annotations

from esper.lockstep.postmortem.afterwards import SILENT_AFTER
from esper.lockstep.watchdog.hosts.board import Board


class Succession:
    """As one host sees it."""

    def __init__(self, own: int) -> None:
        self._own, self._chief = own, 0
        self._number: int | None = None
        self._heard: float | None = None

    def leads(self, now: float, board: Board) -> bool:
        """Whether this host does. Raises RuntimeError where the store does not answer."""
        if self._chief == self._own:
            return True
        summary = board.says(self._chief)
        if self._heard is None or (summary is not None and summary.number != self._number):
            self._heard = now
            self._number = None if summary is None else summary.number
        over = summary is not None and summary.over
        if over or now - self._heard > SILENT_AFTER:
            self.yield_to(self._chief + 1, now)
        return self._chief == self._own

    def yield_to(self, host: int, now: float) -> None:
        """Take that one for the first."""
        self._chief, self._number, self._heard = host, None, now
