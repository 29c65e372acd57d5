"""Audits of replicas that not all ranks have made yet, or in which they differ: a fold, O(1) a record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from esper.lockstep.record.entry import Entry

# Ranks that never come to an audit leave it open; the oldest are let go of.
_MOST_OPEN = 4096


class AuditKey(NamedTuple):
    """What audits of different ranks must have in common to be compared."""

    group: str
    source: str
    what: str
    subset: int  # of a model's parameters: which of them are trained
    position: int  # collectives of that group that the rank had entered
    repeat: int  # audits of this before, between the same two collectives


@dataclass
class Audit:
    """One audit on the ranks that have made it."""

    key: AuditKey
    members: tuple[int, ...]
    entries: dict[int, Entry] = field(default_factory=dict)

    def sides(self) -> list[list[int]]:
        """The ranks whose digests agree, largest side first."""
        by_digest: dict[int, list[int]] = {}
        for rank, entry in sorted(self.entries.items()):
            by_digest.setdefault(entry.digest, []).append(rank)
        return sorted(by_digest.values(), key=len, reverse=True)


class AuditBook:
    """The audits that are not settled."""

    def __init__(self) -> None:
        self._open: dict[AuditKey, Audit] = {}
        self._differing: dict[AuditKey, Audit] = {}
        # Local phases of models (local SGD) whose replicas have been alike again.
        self._averaged: set[tuple[str, str, int]] = set()

    def add(self, entry: Entry, members: tuple[int, ...]) -> None:
        """One rank has made an audit; one that all members have made alike is settled and dropped."""
        subset = entry.detail.get("subset", 0)
        key = AuditKey(entry.group, entry.op, entry.tag or "", subset, entry.sequence, entry.peer)
        audit = self._open.get(key)
        if audit is None:
            if len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            audit = self._open[key] = Audit(key, members)
        audit.entries[entry.rank] = entry
        local = max(one.detail.get("phase", 0) for one in audit.entries.values())
        phase = (key.group, key.what, local)
        if len(audit.sides()) > 1:
            if not local or phase in self._averaged:
                self._differing[key] = audit
        elif len(audit.entries) == len(members):
            del self._open[key]
            self._averaged.add(phase)

    def differing(self) -> Iterator[Audit]:
        """Audits in which ranks differ, the oldest first."""
        yield from self._differing.values()
