"""For how long ranks could not run though they would have, remembered from looks at all times.

A rank counts as late from the moment at which others began to wait for it, and whoever looks may be kept from
a processor then, too: what is measured from the first look on would leave out what came before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from esper.lockstep.run.process import kept_waiting

# What is remembered, in steps: of a patience, but who asks may have much less than who watches. So many of
# them are minutes without a processor.
_A_PATIENCE, _LONGEST_STEP, _STEPS = 100, 0.05, 20_000


class Remembered:
    """Of each rank a number of seconds that only grows; times by one clock."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds that are waited for a rank; what is told is right to a hundredth of that, and
        to 0.05 s.
        """
        self._step = min(patience / _A_PATIENCE, _LONGEST_STEP)
        self._seen: dict[int, deque[tuple[float, float]]] = {}  # by rank: (when, seconds in all)
        self._last: dict[int, float] = {}

    def note(self, rank: int, now: float, seconds: float) -> None:
        """By now it is so many seconds in all; less is what is read of a process that has gone."""
        seen = self._seen.setdefault(rank, deque(maxlen=_STEPS))
        if not seen or seconds - seen[-1][1] >= self._step:
            seen.append((now, seconds))
        self._last[rank] = max(seconds, self.in_all(rank))

    def in_all(self, rank: int) -> float:
        """What was noted last; 0.0 before."""
        return self._last.get(rank, 0.0)

    def since(self, rank: int, since: float) -> float:
        """By how much it has grown since then, as far as is known."""
        seen = self._seen.get(rank)
        if not seen:
            return 0.0
        before = next((seconds for at, seconds in reversed(seen) if at <= since), seen[0][1])
        return self.in_all(rank) - before


class Starvation:
    """Of processes of this machine: none of this time is theirs, or their program's."""

    def __init__(self, pids: Sequence[int], patience: float, gap: float) -> None:
        """`gap`: who looks more seldom than that, seconds, was itself not run, and with it perhaps all."""
        self._pids, self._patience, self._gap = pids, patience, gap
        self._kept, self._in_io, self._unseen = (Remembered(patience) for _ in range(3))
        self._looked: float | None = None
        self._passed = 0.0  # between the last two looks

    def look(self, now: float) -> None:
        """Note for how long each process was ready to run and had no processor until now, and for how long
        nobody has looked.
        """
        self._passed = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        unseen = self._passed if self._passed > self._gap else 0.0
        self._unseen.note(0, now, self._unseen.in_all(0) + unseen)
        for rank, pid in enumerate(self._pids):
            self._kept.note(rank, now, kept_waiting(pid))
            self._in_io.note(rank, now, self._in_io.in_all(rank))

    def in_io(self, rank: int) -> None:
        """The last look found the process in I/O that nothing interrupts: a page of its own code, it may be,
        for which the machine had no memory.
        """
        assert self._looked is not None
        self._in_io.note(rank, self._looked, self._in_io.in_all(rank) + self._passed)

    def since(self, rank: int, since: float) -> float:
        """Of the seconds since then, those in which the rank could not run; of those in I/O, which may never
        end, at most a patience.
        """
        in_io = min(self._in_io.since(rank, since), self._patience)
        return max(self._kept.since(rank, since) + in_io, self._unseen.since(0, since))
