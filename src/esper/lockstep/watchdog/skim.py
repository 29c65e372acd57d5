"""Passes over what all ranks have entered alike, at a small part of the cost of reading it.

A healthy program writes thousands of records a second, and nobody needs to look at each: the digests in them
are chained, so two ranks whose n-th records of a group have one digest have all n alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from esper.lockstep.proof.view import View
from esper.lockstep.record.entry import Kind
from esper.lockstep.record.outline import Outline
from esper.lockstep.record.reader import LedgerReader

# Of each group so many of the last records are left to be read: their data may be under way still.
_KEPT = 8
_COLLECTIVE = int(Kind.COLLECTIVE)  # comparing with the enumeration's member takes twice as long


class Skim:
    """Over the ledgers of one job whose ranks are all on this host."""

    def __init__(self, readers: Sequence[LedgerReader], view: View) -> None:
        self._readers, self._view = readers, view
        # Of each rank and thread the number of the last call passed over, where it has not been read.
        self._last: list[dict[int, int]] = [{} for _ in readers]

    def pass_over(self) -> bool:
        """Spare the readers all but the last of what every rank has entered alike; False, and nothing is
        spared, where some of it can't be judged by its digests.
        """
        unread = [reader.outline() for reader in self._readers]
        settled = self._settled(unread)
        # One that has nothing to show of what it has written has written over it: that is for `Supervisor`.
        hidden = any(
            not one.kinds and reader.written() > reader.position
            for reader, one in zip(self._readers, unread, strict=True)
        )
        if settled is None or hidden:
            return False
        for group, sequence in settled.items():
            self._view.matching.pass_over(group, sequence)
        for reader, one, last in zip(self._readers, unread, self._last, strict=True):
            self._fold(reader, one, settled, last)
        return True

    def read_last(self) -> None:
        """Read the last call of each thread, which a proof may ask for: before each."""
        for reader, last in zip(self._readers, self._last, strict=True):
            self._read(reader, last)

    def _read(self, reader: LedgerReader, last: dict[int, int]) -> None:
        seen = self._view.ranks[reader.rank]
        for number in sorted(last.values()):
            entry = reader.entry(number)
            if reader.times(number) is None:
                continue  # overwritten meanwhile: the thread has been in others since, which are read next
            held, latest = seen.last_of_thread.get(entry.thread), seen.last
            if held is None or held.number < number:
                seen.fold(entry)
            if latest is not None and latest.number > number:
                seen.last = latest
        last.clear()

    def _fold(
        self, reader: LedgerReader, unread: Outline, settled: Mapping[str, int], last: dict[int, int]
    ) -> None:
        """Take what is more than a collective that all have in common, and note the last call of each thread
        in `last`.
        """
        above: list[int] = []  # places of calls that not all have in common
        passed = 0
        for group in set(unread.groups):
            until = settled.get(str(reader.string(group)), -1)
            for place in _calls(unread, group):
                if unread.sequences[place] <= until:
                    passed = max(passed, place + 1)
                    break
                above.append(place)
        # What is no collective waits for none that is behind it.
        while passed < len(unread.kinds) and unread.kinds[passed] != _COLLECTIVE:
            passed += 1
        left = {place for place in above if place < passed}
        if unread.kinds.count(_COLLECTIVE) < len(unread.kinds):
            left.update(place for place in range(passed) if unread.kinds[place] != _COLLECTIVE)
        threads = list(unread.threads[:passed])
        for thread in set(threads):
            shared = (place for place in _backwards(threads, thread) if place not in left)
            last.update((thread, unread.number + place) for place in islice(shared, 1))
        for place in sorted(left):
            self._view.fold([reader.entry(unread.number + place)])  # no other rank has it unread, say
        reader.skip_to(unread.number + passed)
        if last and reader.written() - min(last.values()) > reader.capacity // 2:
            self._read(reader, last)  # or it would be written over

    def _settled(self, unread: Sequence[Outline]) -> dict[str, int] | None:
        """By group the last collective that may be passed over; None where something can't be judged."""
        entered: dict[str, dict[int, tuple[Outline, int, int]]] = {}  # by group and rank: where, id, the last
        for reader, one in zip(self._readers, unread, strict=True):
            for group in set(one.groups):
                last = next(_calls(one, group), None)
                if last is None:
                    continue
                name = reader.string(group)
                if not isinstance(name, str) or not self._members(name, reader):
                    return None  # a send or a receive, or a group whose members the rank does not know
                entered.setdefault(name, {})[reader.rank] = one, group, one.sequences[last]
        settled = {}
        for name, by_rank in entered.items():
            members = self._view.matching.members(name)
            if any(rank not in by_rank for rank in members):
                continue
            common = min(by_rank[rank][2] for rank in members)
            at_common = {_digest(one, group, common) for one, group, _ in (by_rank[rank] for rank in members)}
            if len(at_common) == 1 and None not in at_common:
                settled[name] = common - _KEPT
            elif None not in at_common:
                return None  # they differ: all of it is evidence
        return settled

    def _members(self, group: str, reader: LedgerReader) -> tuple[int, ...]:
        """Who is in the group: of one whose record has not been read yet, as the rank's table has it."""
        if not self._view.matching.members(group):
            self._view.matching.group(group, tuple(reader.groups().get(group, {}).get("ranks", ())))
        return self._view.matching.members(group)


def _backwards(column: list[int], value: int) -> Iterator[int]:
    """The places of `value`, the last one first: most often that is all that is asked for."""
    turned, place = column[::-1], -1
    with suppress(ValueError):
        while True:
            place = turned.index(value, place + 1)
            yield len(turned) - 1 - place


def _calls(unread: Outline, group: int) -> Iterator[int]:
    """The places of the collectives of a group, the last one first."""
    places = _backwards(unread.groups, group)
    return (place for place in places if unread.kinds[place] == _COLLECTIVE)


def _digest(unread: Outline, group: int, sequence: int) -> int | None:
    """Of that collective; None where it is not unread."""
    for place in _calls(unread, group):
        if unread.sequences[place] <= sequence:
            return unread.digests[place] if unread.sequences[place] == sequence else None
    return None
