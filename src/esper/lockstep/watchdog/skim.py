"""Passes over what all ranks have entered alike, at a small part of the cost of reading it.

A healthy program writes thousands of records a second, and nobody needs to look at each: the digests in them
are chained, so two ranks whose n-th records of a group have one digest have all n alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

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
        common = {
            one.number
            for one in unread
            if one.kind == Kind.COLLECTIVE and one.sequence <= settled.get(str(reader.string(one.group)), -1)
        }
        end = max(common, default=-1)
        passed = [one for one in unread if one.number <= end]
        passed += takewhile(lambda one: one.kind != Kind.COLLECTIVE, unread[len(passed) :])
        last = {one.thread: one.number for one in passed if one.number in common}
        for outline in passed:
            if outline.number not in common:
                # A collective may be one that no other rank has unread: it waits for nothing that comes here.
                self._view.fold([reader.entry(outline.number)])
            elif last[outline.thread] == outline.number:
                self._view.ranks[reader.rank].fold(reader.entry(outline.number))
        if passed:
            reader.skip_to(passed[-1].number + 1)

    def _settled(self, unread: Sequence[Sequence[Outline]]) -> dict[str, int] | None:
        """By group the last collective that may be passed over; None where something can't be judged."""
        digests: dict[str, dict[int, dict[int, int]]] = {}  # by group and rank: digest by sequence
        for reader, outlines in zip(self._readers, unread, strict=True):
            for outline in outlines:
                if outline.kind != Kind.COLLECTIVE:
                    continue
                name = reader.string(outline.group)
                if not isinstance(name, str) or not self._view.matching.members(name):
                    return None  # a send or a receive, or a group that nobody has told of yet
                digests.setdefault(name, {}).setdefault(reader.rank, {})[outline.sequence] = outline.digest
        settled = {}
        for name, by_rank in digests.items():
            members = self._view.matching.members(name)
            if any(rank not in by_rank for rank in members):
                continue
            common = min(max(by_rank[rank]) for rank in members)
            found = {by_rank[rank].get(common) for rank in members}
            if len(found) == 1 and None not in found:
                settled[name] = common - _KEPT
            elif None not in found:
                return None  # they differ: all of it is evidence
        return settled
