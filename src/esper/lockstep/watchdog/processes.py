"""The processes of the job's ranks on this host: an end is seen at once, though they are no children."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from selectors import EVENT_READ, EpollSelector

from esper.lockstep.run.process import ending, wait_status

# Who ends a job signals one rank after the other: what its first victim did to the others is no news.
_ENDED_FROM_OUTSIDE = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
_HOLD_BACK = 2.0
# Whoever started it was told first, so how it ended can't be read. If others are ended, too, then now.
_HOLD_UNKNOWN = 0.5


class Processes:
    """Waits for the ends of some processes; others may be reaped by whoever started them at any moment."""

    def __init__(self, selector: EpollSelector, pids: Mapping[int, int]) -> None:
        """`pids`: by rank."""
        self._selector = selector
        self._files: dict[int, int] = {}
        self._held: dict[int, tuple[float, int | None]] = {}
        for rank, pid in pids.items():
            try:
                file = os.pidfd_open(pid)
            except ProcessLookupError:
                self._held[rank] = 0.0, None  # when we came to look, it had gone
                continue
            self._files[rank] = file
            selector.register(file, EVENT_READ, (rank, pid))

    def ended(self, now: float, tell: Callable[[int, int | None], None]) -> bool:
        """Call `tell` with each rank whose end is to be known now, and how it ended; None: only its parent
        was told. Returns whether any has ended just now.
        """
        seen = False
        for key, _ in self._selector.select(0):
            if not isinstance(key.data, tuple):
                continue
            rank, pid = key.data
            seen = True
            self._selector.unregister(key.fd)
            os.close(self._files.pop(rank))
            status = wait_status(pid) if ending(pid) else None
            code = None if status is None else os.waitstatus_to_exitcode(status)
            hold = _HOLD_BACK if code in _ENDED_FROM_OUTSIDE else _HOLD_UNKNOWN if code is None else 0.0
            self._held[rank] = now + hold, code
        for rank, (at, code) in list(self._held.items()):
            if now >= at:
                del self._held[rank]
                tell(rank, code)
        return seen

    def close(self) -> None:
        """Look no more."""
        for file in self._files.values():
            with suppress(KeyError, ValueError):
                self._selector.unregister(file)
            os.close(file)
        self._files.clear()
