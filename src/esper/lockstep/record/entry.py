"""The words of a ledger, as the proof reads them: pure data, the same for a live rank and for one long
dead.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

_BETWEEN_POLLS = 0.2  # seconds that a program which polls a wait may spend on other things


class Kind(IntEnum):
    """What a record is."""

    COLLECTIVE = 0
    GROUP = 1
    DESTROY = 2
    RAISED = 3
    EXIT = 4
    OVER = 5
    BEGIN = 6
    AUDIT = 8
    QUESTION = 9  # the rank gives up on a wait of its own and wants to know why; its patience in the detail
    FAULT = 7  # something outside the program was done to it: what, in the detail


class Flag(IntFlag):
    """Properties of a collective's record."""

    WAITED = 1  # waited for from its issue: a synchronous call, or one that DDP's reducer issued
    NATIVE = 2  # issued from C++, so its return can't be seen; `done` may say when the backend was
    UNWINDING = 4  # an exception was being handled when it was issued
    FAILED = 8  # the call or its wait raised
    POLLED = 16  # its wait has a time-out of its own: the program may come back and issue something else
    OFFERED = 32  # the backend has not yet said whether it takes it
    REFUSED = 64  # the backend did not take it: nothing was sent, and the next call has its number


# As plain integers: arithmetic on enum members costs more than all else that is done with a record.
_WAITED, _NATIVE, _FAILED = int(Flag.WAITED), int(Flag.NATIVE), int(Flag.FAILED)
_POLLED, _OFFERED, _REFUSED = int(Flag.POLLED), int(Flag.OFFERED), int(Flag.REFUSED)


class Time(IntEnum):
    """Which of a record's times `Ledger.stamp` sets."""

    ISSUED = 0
    WAIT_BEGUN = 1
    WAIT_ENDED = 2
    DONE = 3


class State(IntEnum):
    """Where a rank's program is."""

    STARTING = 0
    RUNNING = 1
    OVER = 2


class Site(NamedTuple):
    """A source line: absolute file, line, qualified name of the function."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Times(NamedTuple):
    """The part of a record that changes after it was written; seconds of CLOCK_MONOTONIC, 0.0 for not yet."""

    issued: float
    wait_begun: float
    wait_ended: float
    done: float
    thread: int
    flags: int


class Entry(NamedTuple):
    """One collective on one rank, or one event of its program (`kind`), as its ledger holds it."""

    rank: int
    number: int
    kind: Kind
    group: str
    sequence: int
    op: str
    reduce_op: str | None
    dtype: str | None
    shape: tuple[int, ...] | None
    site: Site | None
    tag: str | None
    detail: dict[str, Any]
    root: int
    peer: int
    elements: int
    digest: int
    times: Times
    # False: the disk had no room for one of the names, or the table was cut. Nothing can be said of it.
    legible: bool = True

    @property
    def issued(self) -> float:
        return self.times.issued

    @property
    def thread(self) -> int:
        return self.times.thread

    @property
    def native(self) -> bool:
        """Issued from C++: its wait is not seen to begin or to end, at most that the backend is done."""
        return bool(self.times.flags & _NATIVE)

    @property
    def offered(self) -> bool:
        """When it was read, the backend had not said whether it takes it."""
        return bool(self.times.flags & _OFFERED)

    @property
    def refused(self) -> bool:
        """The backend did not take it."""
        return bool(self.times.flags & _REFUSED)

    def waited(self) -> bool:
        """Entered, waited for, and not come back with success, when its ledger was last looked at."""
        times = self.times
        if times.flags & _REFUSED or (times.wait_ended and not times.flags & _FAILED):
            return False
        return bool(times.wait_begun or times.flags & _WAITED)

    def waiting_since(self, now: float) -> float | None:
        """When the wait began that it is in, or between two polls of, at `now`; None when it is in none."""
        times = self.times
        if not self.waited():
            return None
        in_it = times.wait_ended == 0.0 or times.wait_begun > times.wait_ended
        if not in_it and now - times.wait_ended > _BETWEEN_POLLS:
            return None  # given up
        return times.issued if times.flags & _POLLED else times.wait_begun or times.issued

    def blocks(self) -> bool:
        """Whether its thread is in the wait now and can't leave it to issue something else."""
        times = self.times
        if times.done or times.flags & (_POLLED | _OFFERED) or not self.waited():
            return False
        return times.wait_ended == 0.0 or times.wait_begun > times.wait_ended
