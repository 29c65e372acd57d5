"""Which calls from C++ a thread may be in: the end of a wait there is not recorded, but the backend's is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from esper.lockstep.record.entry import Flag, Kind
from esper.lockstep.record.reader import LedgerReader

# gloo's thread says that a call is done before it wakes who waits for it: seconds until that one runs.
_WOKEN_WITHIN = 0.05
_NATIVE = int(Flag.NATIVE)


class NativeCalls:
    """Those of one rank, read from the whole ring and not only from what is followed: what all have entered
    is passed over soon, and may be under way for long.
    """

    def __init__(self, reader: LedgerReader, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: that of the rank's host."""
        self._reader, self._clock = reader, clock
        self._seen: int | None = None  # records that have been looked at
        self._not_done: dict[int, list[int]] = {}  # numbers by thread

    def under_way(self, thread: int, besides: Collection[int]) -> bool:
        """Whether the thread has issued a call, other than those numbers, with which the backend may not be
        done. Each record is looked at once, and only when somebody asks.
        """
        self._look()
        own = self._not_done.get(thread, [])
        for number in reversed(own):
            if number not in besides and not self._done(number):
                return True
        own[:] = [number for number in own if number in besides]
        return False

    def _look(self) -> None:
        if self._seen is None:  # pooled ranks have the records of many programs
            self._seen = self._reader.begun() or 0
        for number, kind, times in self._reader.since(self._seen):
            self._seen = number + 1
            if kind == Kind.BEGIN:  # what the program before it left is nothing to this one
                self._not_done.clear()
            elif kind == Kind.COLLECTIVE and times.flags & _NATIVE:
                self._not_done.setdefault(times.thread, []).append(number)

    def _done(self, number: int) -> bool:
        times = self._reader.times(number)
        if times is None or times.wait_ended:  # overwritten; refused, or one that blocks until its end
            return True
        return times.done != 0.0 and self._clock() - times.done >= _WOKEN_WITHIN
