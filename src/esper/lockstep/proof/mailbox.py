"""Which sends and receives have met: the messages to one rank, in one group, under one tag."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from esper.lockstep.record.entry import Entry, Flag

Refresh = Callable[[Entry], Entry | None]

_BYTES = {
    "uint8": 1, "int8": 1, "bool": 1, "int16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "float32": 4, "int64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
# Sends whose return is not seen, to a receiver from any source; more than this are forgotten.
_MOST_SENDS = 64


class Wait(NamedTuple):
    """An entry that its rank waits in, and the ranks whose coming it still lacks.

    `sure` is False where one of them may have come unseen: nothing can be proved from such a wait.
    `any_of`: one of them is enough.
    """

    entry: Entry
    lacks: tuple[int, ...]
    sure: bool = True
    any_of: bool = False


class Mailbox:
    """Sends to `target` and its receives.

    While every receive names its source the n-th send of a source meets the n-th receive from it. Once one
    takes any source, who met whom can't be told; but a message is taken by one receive, so when as many
    receives have come back as messages were sent, none is left for those that still wait.
    """

    def __init__(
        self, target: int, others: tuple[int, ...], met: deque[tuple[Entry, Entry]] | None = None
    ) -> None:
        """`met` takes the sends and receives that have met."""
        self._target, self._others = target, others
        self._met = deque[tuple[Entry, Entry]](maxlen=1) if met is None else met
        self._pairs: dict[int, tuple[deque[Entry], deque[Entry]]] = {}
        self._from_any: deque[Entry] = deque()
        self._mixed = False  # a receive from any source has come
        self._left = 0  # mixed: messages that no receive is known to have taken
        self._forgotten = False
        self.too_long: tuple[Entry, Entry] | None = None  # a send and the receive whose buffer it overflows

    def send(self, source: int, entry: Entry) -> None:
        """`source` sends to the target."""
        sends, receives = self._pair(source)
        if receives and not self._mixed:
            self._meet(entry, receives.popleft())
            return
        sends.append(entry)
        self._left += self._mixed
        if self._mixed and len(sends) > _MOST_SENDS:
            sends.popleft()

    def receive(self, source: int | None, entry: Entry) -> None:
        """The target receives from `source`; None: from any."""
        if source is None:
            if not self._mixed:
                self._mixed, self._left = True, sum(len(sends) for sends, _ in self._pairs.values())
            self._from_any.append(entry)
            return
        sends, receives = self._pair(source)
        if sends and not self._mixed:
            self._meet(sends.popleft(), entry)
        else:
            receives.append(entry)

    @property
    def empty(self) -> bool:
        """Whether all that came has met, so that a new mailbox would know as much."""
        if self._mixed or self.too_long is not None:
            return False
        return not any(sends or receives for sends, receives in self._pairs.values())

    def perhaps_met(self) -> Iterator[tuple[Entry, Entry]]:
        """Where a receive from any source has come: the sends and receives that may have met, since there is
        a message for each receive.
        """
        if not self._mixed or not self._enough:
            return
        for sends, receives in self._pairs.values():
            yield from product(sends, (*receives, *self._from_any))

    @property
    def _receiving(self) -> int:
        return len(self._from_any) + sum(len(receives) for _, receives in self._pairs.values())

    @property
    def _enough(self) -> bool:
        """Whether there is a message for each receive."""
        return self._left >= self._receiving and not self._forgotten

    def waits(self, refresh: Refresh, readable: Callable[[int], bool]) -> Iterator[Wait]:
        """Sends and receives that wait for each other; `readable`: whether a rank's records are all there."""
        if self._mixed:
            self._settle(refresh)
        mine = readable(self._target)
        none_left = self._left == 0 and not self._forgotten
        sending = sum(len(sends) for sends, _ in self._pairs.values())
        unmet = self._receiving == 0 and sending == self._left and not self._forgotten
        for source, (sends, receives) in self._pairs.items():
            sure = mine and readable(source)
            for entry in sends:
                yield Wait(entry, (self._target,), sure and (unmet or not self._mixed))
            for entry in receives:
                yield Wait(entry, (source,), sure and (none_left or not self._mixed))
        all_readable = mine and all(readable(one) for one in self._others)
        if not self._enough:
            for entry in self._from_any:
                yield Wait(entry, self._others, all_readable and none_left, any_of=True)

    def _settle(self, refresh: Refresh) -> None:
        """Let go of what has come back."""
        for receives in (self._from_any, *(receives for _, receives in self._pairs.values())):
            for entry in list(receives):
                fresh = refresh(entry)
                if fresh is None:
                    self._forgotten = True  # overwritten: whether it came back is not to be known
                elif not _came_back(fresh):
                    continue
                receives.remove(entry)
                self._left -= 1
        for sends, _ in self._pairs.values():
            for entry in list(sends):
                fresh = refresh(entry)
                if fresh is None or _came_back(fresh):
                    sends.remove(entry)

    def _meet(self, send: Entry, receive: Entry) -> None:
        self._met.append((send, receive))
        sent, room = _bytes(send), _bytes(receive)
        if self.too_long is None and sent is not None and room is not None and sent > room:
            self.too_long = send, receive

    def _pair(self, source: int) -> tuple[deque[Entry], deque[Entry]]:
        return self._pairs.setdefault(source, (deque(), deque()))


def _bytes(entry: Entry) -> int | None:
    size = _BYTES.get(entry.dtype or "")
    return None if size is None or entry.shape is None else size * math.prod(entry.shape)


def _came_back(entry: Entry) -> bool:
    times = entry.times
    return bool(times.wait_ended) and not times.flags & Flag.FAILED
