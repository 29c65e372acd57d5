"""How far the ranks of this host are, in a few numbers, at a small part of the cost of reading it all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.lockstep.record.entry import Entry, Flag, Kind
from esper.lockstep.record.reader import LedgerReader

# Of every so many-th collective of a group the digest is told: other ranks are further, or less far, now.
MARK = 256
_MOST_OPEN = 64
_FAILED, _POLLED = int(Flag.FAILED), int(Flag.POLLED)


@dataclass
class Progress:
    """One rank: how many collectives it has entered in each group, and the digest of all up to the last
    one of every `MARK`.
    """

    entered: dict[str, int] = field(default_factory=dict)
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)  # by group: (sequence, digest)
    # The numbers of the last calls that may not be over.
    open: deque[int] = field(default_factory=lambda: deque(maxlen=_MOST_OPEN))
    left: bool = False  # it has a record of an exception, or of its program's end
    failed: int | None = None  # the number of its last call that raised
    whole: bool = True  # False: the ring was overwritten before it was looked at


class Following:
    """Goes along the ledgers of this host; each record is looked at once."""

    def __init__(self, readers: Mapping[int, LedgerReader]) -> None:
        self._readers = readers
        self.progress = {rank: Progress() for rank in readers}

    def follow(self) -> None:
        """Take what is new."""
        for rank, reader in self._readers.items():
            one = self.progress[rank]
            behind = reader.written() - reader.position
            unread = reader.outline()
            if behind and not unread.kinds:
                one.whole = False
                reader.skip_to(reader.written() - reader.capacity // 2)
                unread = reader.outline()
            records = zip(*unread[1:], strict=True)
            for number, (kind, group, sequence, digest, _) in enumerate(records, unread.number):
                if kind == Kind.COLLECTIVE:
                    name = reader.string(group) or ""
                    one.entered[name] = sequence + 1
                    one.open.append(number)
                    if sequence % MARK == 0:
                        one.marks[name] = sequence, digest
                elif kind in (Kind.RAISED, Kind.EXIT, Kind.OVER):
                    one.left = True
            reader.skip_to(unread.number + len(unread.kinds))

    def open(self, rank: int) -> list[Entry]:
        """The rank's last calls that are not over, as they are now."""
        reader, one = self._readers[rank], self.progress[rank]
        found = []
        for number in list(one.open):
            times = reader.times(number)
            if times is None or times.wait_ended or times.done:
                one.open.remove(number)
                if times is not None and times.flags & _FAILED and not times.flags & _POLLED:
                    one.failed = number
            else:
                found.append(reader.entry(number))
        return found

    def waiting(self, rank: int) -> float | None:
        """For how many seconds the rank has been in the oldest of its waits; None: it is in none."""
        now = time.monotonic()
        begun = [since for entry in self.open(rank) if (since := entry.waiting_since(now)) is not None]
        return max(0.0, now - min(begun)) if begun else None
