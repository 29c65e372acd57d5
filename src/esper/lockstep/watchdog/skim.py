"""Passes over what all ranks have entered alike, at a small part of the cost of reading it.

A healthy program writes thousands of records a second, and nobody needs to look at each: the digests in them
are chained, so two ranks whose n-th records of a group have one digest have all n alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.lockstep.proof.view import View
from esper.lockstep.record.entry import Kind
from esper.lockstep.record.reader import LedgerReader, Outline

# Of each group so many of the last records are left to be read: their data may be under way still.
_KEPT = 8


class Skim:
    """Over the ledgers of one job whose ranks are all on this host."""

    def __init__(self, readers: Sequence[LedgerReader], view: View) -> None:
        self._readers, self._view = readers, view

    def pass_over(self) -> bool:
        """Spare the readers all but the last of what every rank has entered alike; False, and nothing is
        spared, where some of it can't be judged by its digests.
        """
        unread = [reader.outline() for reader in self._readers]
        settled = self._settled(unread)
        # One that has nothing to show of what it has written has written over it: that is for `Supervisor`.
        hidden = any(
            not outlines and reader.written() > reader.position
            for reader, outlines in zip(self._readers, unread, strict=True)
        )
        if settled is None or hidden:
            return False
        for group, sequence in settled.items():
            self._view.matching.pass_over(group, sequence)
        for reader, outlines in zip(self._readers, unread, strict=True):
            self._fold(reader, outlines, settled)
        return True

    def _fold(self, reader: LedgerReader, unread: Sequence[Outline], settled: Mapping[str, int]) -> None:
        """Take what is more than a collective that all have in common, and the last call of each thread."""
        until = {group: settled.get(str(reader.string(group)), -1) for group in {one.group for one in unread}}
        last: dict[int, Outline] = {}  # of each thread
        between: list[Outline] = []
        taken = passed = 0  # of `between`; of `unread`
        for place, one in enumerate(unread, 1):
            if one.kind != Kind.COLLECTIVE:
                between.append(one)
                if passed == place - 1:
                    taken, passed = len(between), place
            elif one.sequence <= until[one.group]:
                last[one.thread] = one
                taken, passed = len(between), place
            else:  # one that no other rank has unread, say: what comes behind it does not wait for it
                between.append(one)
        for one in sorted([*between[:taken], *last.values()]):
            entry = reader.entry(one.number)
            if last.get(one.thread) is one:
                self._view.ranks[reader.rank].fold(entry)
            else:
                self._view.fold([entry])
        if passed:
            reader.skip_to(unread[passed - 1].number + 1)

    def _settled(self, unread: Sequence[Sequence[Outline]]) -> dict[str, int] | None:
        """By group the last collective that may be passed over; None where something can't be judged."""
        digests: dict[str, dict[int, dict[int, int]]] = {}  # by group and rank: digest by sequence
        for reader, outlines in zip(self._readers, unread, strict=True):
            found: dict[int, dict[int, int]] = {}
            for one in outlines:
                if one.kind == Kind.COLLECTIVE:
                    if one.group not in found:
                        found[one.group] = {}
                    found[one.group][one.sequence] = one.digest
            for group, by_sequence in found.items():
                name = reader.string(group)
                if not isinstance(name, str) or not self._members(name, reader):
                    return None  # a send or a receive, or a group whose members the rank does not know
                digests.setdefault(name, {})[reader.rank] = by_sequence
        settled = {}
        for name, by_rank in digests.items():
            members = self._view.matching.members(name)
            if any(rank not in by_rank for rank in members):
                continue
            common = min(max(by_rank[rank]) for rank in members)
            at_common = {by_rank[rank].get(common) for rank in members}
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
