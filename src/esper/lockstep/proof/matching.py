"""Which ranks are in the same collective: a fold over N ledgers, O(1) a record."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from esper.lockstep.proof.mailbox import Mailbox, Refresh, Wait
from esper.lockstep.record.entry import Entry

# Of a group, what all have entered and what may be under way still; of more the oldest are forgotten.
_MOST_UNDER_WAY = 256
_NEVER = 1 << 64  # no collective has this number


class Signature(NamedTuple):
    """What the n-th entries of a group's members must have in common."""

    op: str
    reduce_op: str | None
    root: int
    dtype: str | None
    elements: int
    same: str | None


def signature(entry: Entry) -> Signature:
    """The matching fields of a collective. Barriers carry a dummy tensor, which is no part of it."""
    return Signature(
        entry.op, entry.reduce_op, entry.root, entry.dtype, entry.elements, entry.detail.get("same")
    )


@dataclass
class Slot:
    """Collective number `sequence` of one group: the entries of those who have come, by global rank."""

    group: str
    sequence: int
    members: tuple[int, ...]
    entries: dict[int, Entry] = field(default_factory=dict)
    # They have come, but what they came with is lost: they are not absent and contradict nobody.
    unread: set[int] = field(default_factory=set)
    alike: bool = True  # False: two of them may contradict each other

    def enter(self, entry: Entry) -> None:
        """A member has come."""
        first = next(iter(self.entries.values()), entry)
        self.alike = self.alike and entry.tag == first.tag and signature(entry) == signature(first)
        self.entries[entry.rank] = entry

    @property
    def absent(self) -> list[int]:
        return [rank for rank in self.members if rank not in self.entries and rank not in self.unread]

    @property
    def complete(self) -> bool:
        """Whether all members have come."""
        return len(self.entries) + len(self.unread - self.entries.keys()) == len(self.members)

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


class Matching:
    """All that is not yet settled: slots that lack a member or whose members contradict each other."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[int, ...]] = {}
        self._slots: dict[str, dict[int, Slot]] = {}
        self._early: dict[str, list[Entry]] = {}
        self._settled: dict[str, deque[Slot]] = {}
        self._met: dict[str, deque[tuple[Entry, Entry]]] = {}  # sends and receives, by their group
        self._mailboxes: dict[tuple[str, int, int], Mailbox] = {}  # by group, receiver and tag
        self._expected: dict[tuple[str, int], int] = {}
        self._passed: dict[str, int] = {}
        self._holes: dict[str, list[tuple[int, int, int]]] = {}
        self._unread: set[int] = set()
        self._unfit: tuple[Entry, Entry] | None = None  # two whose all_to_all splits don't fit
        self._offered: dict[tuple[int, int], Entry] = {}

    def group(self, name: str, members: tuple[int, ...]) -> None:
        """A rank says who is in group `name`. The first to say it counts."""
        if name and members and name not in self._members:
            self._members[name] = members
            for entry in self._early.pop(name, []):
                self.add(entry)

    def unknown(self, rank: int, group: str | None = None, before: int = _NEVER) -> None:
        """What `rank` did is lost, or what it did in `group`, before anything was added there: it may have
        come to whatever others wait in, of numbers less than `before`.
        """
        if group is None:
            self._unread.add(rank)
        else:
            self._holes.setdefault(group, []).append((rank, 0, before))

    @property
    def unreadable(self) -> frozenset[int]:
        """The ranks of whom nobody may be said to wait for them."""
        return frozenset(self._unread)

    @property
    def any_offered(self) -> bool:
        """Whether the backend had not said of some call, when last looked at, whether it takes it."""
        return bool(self._offered)

    def members(self, name: str) -> tuple[int, ...]:
        """Global ranks of group `name`, in group order; empty when nobody has said it yet."""
        return self._members.get(name, ())

    def add(self, entry: Entry) -> None:
        """A collective was entered. Settled slots are dropped here, so that memory follows what is open."""
        if not entry.legible:
            # Where it is can't be told any more, so nobody may be said to wait for it.
            self._unread.add(entry.rank)
            return
        group = entry.group.removeprefix("p2p:")
        members = self._members.get(group)
        if members is None:
            self._early.setdefault(group, []).append(entry)
            return
        expected = self._expected.get((entry.group, entry.rank), 0)
        if entry.refused:
            self._expected[entry.group, entry.rank] = entry.sequence
            return
        if entry.sequence <= self._passed.get(entry.group, -1):
            return
        self._expected[entry.group, entry.rank] = entry.sequence + 1
        if entry.sequence > expected:
            self._lost(entry, expected)
        if group != entry.group:
            self._add_point_to_point(entry, members)
            return
        slots = self._slots.setdefault(group, {})
        slot = slots.get(entry.sequence)
        if entry.offered:
            self._offered[entry.rank, entry.number] = entry
        if slot is None and entry.sequence < expected:
            return  # settled with a refused call in its place, which was the same
        if slot is None:
            slot = slots[entry.sequence] = Slot(group, entry.sequence, members)
            for rank, first, after in self._holes.get(group, ()):
                if first <= entry.sequence < after:
                    slot.unread.add(rank)
        slot.enter(entry)
        self._settle(slot)

    def pass_over(self, group: str, sequence: int) -> None:
        """Somebody else has seen all members of `group` enter alike, up to collective number `sequence`."""
        if sequence <= self._passed.get(group, -1):
            return
        self._passed[group] = sequence
        slots = self._slots.get(group, {})
        for number in [number for number in slots if number <= sequence]:
            del slots[number]
        for rank in self._members[group]:
            self._expected[group, rank] = max(self._expected.get((group, rank), 0), sequence + 1)

    def follow_offered(self, refresh: Refresh) -> None:
        """See what has become of the calls that no backend had taken when they were read."""
        for place, entry in list(self._offered.items()):
            fresh = refresh(entry)
            if fresh is not None and fresh.offered:
                continue
            del self._offered[place]
            if fresh is None or not fresh.refused:
                continue
            slot = self.slot(entry.group, entry.sequence)
            if slot is not None and slot.entries.get(entry.rank) is entry:
                del slot.entries[entry.rank]
                self._expected[entry.group, entry.rank] = entry.sequence

    def offered(self, slot: Slot) -> list[int]:
        """The ranks whose call here no backend has taken yet, and perhaps none will."""
        return [rank for rank, entry in slot.entries.items() if (rank, entry.number) in self._offered]

    def _settle(self, slot: Slot) -> None:
        if slot.complete and (slot.alike or len(slot.sides()) == 1):
            others = self._slots[slot.group]
            del others[slot.sequence]
            self._unfit = self._unfit or _unfit(slot)
            # One that stays open before it is a contradiction: nothing after that was in common.
            if next(iter(others), slot.sequence) >= slot.sequence:
                self._settled.setdefault(slot.group, deque(maxlen=_MOST_UNDER_WAY)).append(slot)

    def _lost(self, entry: Entry, expected: int) -> None:
        """The ring overwrote records that were not read yet. Numbers are consecutive: the rank was there."""
        if entry.group.startswith("p2p:"):
            # Which sends met which receives is not to be known any more.
            self._unread.add(entry.rank)
            return
        self._holes.setdefault(entry.group, []).append((entry.rank, expected, entry.sequence))
        for slot in list(self._slots.get(entry.group, {}).values()):
            if expected <= slot.sequence < entry.sequence:
                slot.unread.add(entry.rank)
                self._settle(slot)

    def _add_point_to_point(self, entry: Entry, members: tuple[int, ...]) -> None:
        peer = members[entry.peer] if 0 <= entry.peer < len(members) else None
        sent = entry.op == "send" and peer is not None
        target = peer if sent and peer is not None else entry.rank
        place = (entry.group, target, entry.detail.get("tag", 0))
        mailbox = self._mailboxes.get(place)
        if mailbox is None:
            others = tuple(rank for rank in members if rank != target)
            met = self._met.setdefault(entry.group, deque(maxlen=_MOST_UNDER_WAY))
            mailbox = self._mailboxes[place] = Mailbox(target, others, met)
        if sent:
            mailbox.send(entry.rank, entry)
        else:
            mailbox.receive(peer, entry)
        if mailbox.empty:  # a program may use another tag at every step, and each look goes through all
            del self._mailboxes[place]

    def in_one_order(self) -> bool:
        """Whether all that is open are collectives of one group, in which nobody contradicts another."""
        waiting = [slots for slots in self._slots.values() if slots]
        if len(waiting) > 1 or self._mailboxes or self._unfit is not None:
            return False
        return all(slot.alike for slots in waiting for slot in slots.values())

    def open(self) -> Iterator[Slot]:
        """Per group the open slots, lowest sequence first."""
        for slots in self._slots.values():
            yield from (slots[sequence] for sequence in sorted(slots))

    def misfits(self) -> Iterator[tuple[Entry, Entry]]:
        """Pairs that met with unequal sizes: a send and a receive with less room, two parts of an
        all_to_all.
        """
        if self._unfit is not None:
            yield self._unfit
        for mailbox in self._mailboxes.values():
            if (pair := mailbox.too_long) is not None and self._unread.isdisjoint(one.rank for one in pair):
                yield pair

    def slot(self, group: str, sequence: int) -> Slot | None:
        """An open slot."""
        return self._slots.get(group, {}).get(sequence)

    def last_settled(self, group: str) -> Slot | None:
        """The last collective of `group` that all members have entered alike."""
        slots = self._settled.get(group)
        return slots[-1] if slots else None

    def perhaps_under_way(self) -> Iterator[Iterable[Entry]]:
        """What nobody's coming is lacking for, and the backend may not be done with: the entries of each
        collective that all have entered alike, and of sends and receives that have met.
        """
        for slots in self._settled.values():
            for slot in slots:
                yield slot.entries.values()
        for pairs in self._met.values():
            yield from pairs
        for mailbox in self._mailboxes.values():
            yield from mailbox.perhaps_met()

    def waits(self, refresh: Refresh) -> dict[int, list[Wait]]:
        """Who waits in what, by rank; `refresh` gives an entry its times as they are now, None if it has been
        overwritten.
        """
        found: dict[int, list[Wait]] = {}

        def take(wait: Wait) -> None:
            fresh = refresh(wait.entry)
            if wait.lacks and fresh is not None and fresh.waited():
                found.setdefault(fresh.rank, []).append(wait._replace(entry=fresh))

        def readable(rank: int) -> bool:
            return rank not in self._unread

        for slot in self.open():
            absent = tuple(slot.absent)
            sure = all(readable(rank) for rank in absent)
            for entry in slot.entries.values() if absent else ():
                take(Wait(entry, _needed(entry, absent), sure))
        for mailbox in self._mailboxes.values():
            for wait in mailbox.waits(refresh, readable):
                take(wait)
        return found


def _unfit(slot: Slot) -> tuple[Entry, Entry] | None:
    """Two members of a complete all_to_all of which one sends the other more or less than that wants."""
    if not any("to" in entry.detail for entry in slot.entries.values()):
        return None
    for source, one in slot.entries.items() if not slot.unread else ():
        for target, other in slot.entries.items():
            to, wanted = one.detail.get("to"), other.detail.get("from")
            if to and wanted and to[slot.members.index(target)] != wanted[slot.members.index(source)]:
                return one, other
    return None


def _needed(entry: Entry, absent: tuple[int, ...]) -> tuple[int, ...]:
    """Of the absent, those that this entry waits for: every rank makes a new group, its members connect."""
    members = entry.detail.get("ranks")
    return absent if members is None else tuple(rank for rank in absent if rank in members)
