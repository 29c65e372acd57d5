"""Which ranks are in the same collective: a fold over N ledgers, O(1) a record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from esper.lockstep.entry import Entry


class Signature(NamedTuple):
    """What the n-th entries of a group's members must have in common."""

    op: str
    reduce_op: str | None
    root: int
    dtype: str | None
    elements: int


def signature(entry: Entry) -> Signature:
    """The matching fields of a collective. Barriers carry a dummy tensor, which is no part of it."""
    return Signature(entry.op, entry.reduce_op, entry.root, entry.dtype, entry.elements)


@dataclass
class Slot:
    """Collective number `sequence` of one group: the entries of those who have come, by global rank."""

    group: str
    sequence: int
    members: tuple[int, ...]
    entries: dict[int, Entry] = field(default_factory=dict)

    @property
    def absent(self) -> list[int]:
        return [rank for rank in self.members if rank not in self.entries]

    def sides(self) -> list[list[int]]:
        """The ranks that agree with each other, largest side first; one side means no contradiction.

        Tags decide only where everything else is equal, and an entry without a tag contradicts none.
        """
        by_signature: dict[object, list[int]] = {}
        for rank, entry in sorted(self.entries.items()):
            by_signature.setdefault(signature(entry), []).append(rank)
        if len(by_signature) == 1:
            tags = {entry.tag for entry in self.entries.values()} - {None}
            if len(tags) > 1:
                by_signature = {}
                for rank, entry in sorted(self.entries.items()):
                    if entry.tag is not None:
                        by_signature.setdefault(entry.tag, []).append(rank)
        return sorted(by_signature.values(), key=len, reverse=True)


class Wait(NamedTuple):
    """An entry that its rank waits in, and the ranks whose coming it still lacks."""

    entry: Entry
    lacks: tuple[int, ...]


class Matching:
    """All that is not yet settled: slots that lack a member or whose members contradict each other."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[int, ...]] = {}
        self._slots: dict[str, dict[int, Slot]] = {}
        self._early: dict[str, list[Entry]] = {}
        self._settled: dict[str, Slot] = {}
        self._channels: dict[tuple[str, int, int], tuple[deque[Entry], deque[Entry]]] = {}

    def group(self, name: str, members: tuple[int, ...]) -> None:
        """A rank says who is in group `name`. The first to say it counts."""
        if name not in self._members:
            self._members[name] = members
            for entry in self._early.pop(name, []):
                self.add(entry)

    def members(self, name: str) -> tuple[int, ...]:
        """Global ranks of group `name`, in group order; empty when nobody has said it yet."""
        return self._members.get(name, ())

    def add(self, entry: Entry) -> None:
        """A collective was entered. Settled slots are dropped here, so that memory follows what is open."""
        group = entry.group.removeprefix("p2p:")
        members = self._members.get(group)
        if members is None:
            self._early.setdefault(group, []).append(entry)
        elif group != entry.group:
            self._add_point_to_point(entry, members)
        else:
            slots = self._slots.setdefault(group, {})
            slot = slots.get(entry.sequence)
            if slot is None:
                slot = slots[entry.sequence] = Slot(group, entry.sequence, members)
            slot.entries[entry.rank] = entry
            if len(slot.entries) == len(members) and len(slot.sides()) == 1:
                del slots[entry.sequence]
                self._settled[group] = slot

    def _add_point_to_point(self, entry: Entry, members: tuple[int, ...]) -> None:
        if not 0 <= entry.peer < len(members):
            return  # any source: an OR over senders, which this matching does not decide
        peer = members[entry.peer]
        sent = entry.op == "send"
        channel = (entry.group, entry.rank, peer) if sent else (entry.group, peer, entry.rank)
        sends, receives = self._channels.setdefault(channel, (deque(), deque()))
        mine, theirs = (sends, receives) if sent else (receives, sends)
        if theirs:
            theirs.popleft()
        else:
            mine.append(entry)

    def open(self) -> Iterator[Slot]:
        """Per group the open slots, lowest sequence first."""
        for slots in self._slots.values():
            yield from (slots[sequence] for sequence in sorted(slots))

    def slot(self, group: str, sequence: int) -> Slot | None:
        """An open slot."""
        return self._slots.get(group, {}).get(sequence)

    def last_settled(self, group: str) -> Slot | None:
        """The last collective of `group` that all members have entered alike."""
        return self._settled.get(group)

    def waits(self, refresh: Callable[[Entry], Entry]) -> dict[int, list[Wait]]:
        """Who waits in what, by rank; `refresh` gives an entry its times as they are now."""
        found: dict[int, list[Wait]] = {}
        for slot in self.open():
            absent = tuple(slot.absent)
            if not absent:
                continue
            for rank, entry in slot.entries.items():
                fresh = refresh(entry)
                if fresh.waited():
                    found.setdefault(rank, []).append(Wait(fresh, absent))
        for (_, source, target), (sends, receives) in self._channels.items():
            for pending, lacks in ((sends, target), (receives, source)):
                if pending:
                    fresh = refresh(pending[0])
                    if fresh.waited():
                        found.setdefault(fresh.rank, []).append(Wait(fresh, (lacks,)))
        return found
