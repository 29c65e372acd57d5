"""What one host sends for a judgement: the ends of its ranks' ledgers, and how those ranks are.

A line of JSON, then the files one after the other, compressed. Nothing in it is ever executed.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.lockstep.errors import LedgerError
from esper.lockstep.postmortem.copied import CopiedLedger
from esper.lockstep.record.audits import audits_path
from esper.lockstep.record.ledger import ledger_path
from esper.lockstep.record.tail import tail
from esper.lockstep.watchdog.hosts.facts import Facts

# More than any host has; what is larger is refused before it is unpacked.
_MOST_BYTES = 1 << 30
_FAST = 1  # zlib's level: the ranks wait


@dataclass(frozen=True)
class Parcel:
    """One host's."""

    asked: str  # the question that it answers
    read: float  # when that was read, by the host's CLOCK_MONOTONIC
    sent: float  # and when this was made
    wall: float  # by how much its clock on the wall is ahead of that
    facts: Mapping[int, Facts]  # by rank
    entered: Mapping[int, Mapping[str, int]]  # by rank and group, where all of it was followed
    files: Mapping[int, tuple[bytes, ...]]  # by rank: ledger, table, and audits if there are any

    def packed(self) -> bytes:
        """As bytes."""
        pieces = [piece for both in self.files.values() for piece in both]
        head: dict[str, Any] = {
            "asked": self.asked,
            "read": self.read,
            "sent": self.sent,
            "wall": self.wall,
            "facts": {rank: one.document() for rank, one in self.facts.items()},
            "entered": self.entered,
            "files": {rank: [len(piece) for piece in both] for rank, both in self.files.items()},
        }
        return zlib.compress(json.dumps(head).encode() + b"\n" + b"".join(pieces), _FAST)

    @staticmethod
    def unpacked(data: bytes) -> Parcel:
        """Raises ValueError for what is none."""
        try:
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(data, _MOST_BYTES)
            line, _, rest = plain.partition(b"\n")
            head = json.loads(line)
            files: dict[int, tuple[bytes, ...]] = {}
            at = 0
            for rank, lengths in head["files"].items():
                ends = [at + sum(lengths[: count + 1]) for count in range(len(lengths))]
                starts = [at, *ends[:-1]]
                files[int(rank)] = tuple(rest[start:end] for start, end in zip(starts, ends, strict=True))
                at = ends[-1]
            return Parcel(
                str(head["asked"]),
                float(head["read"]),
                float(head["sent"]),
                float(head["wall"]),
                {int(rank): Facts.of(one) for rank, one in head["facts"].items()},
                {int(rank): dict(groups) for rank, groups in head["entered"].items()},
                files,
            )
        except (zlib.error, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{len(data)} bytes are no parcel: {error!r}") from error


def parcel(
    asked: str, read: float, ledgers: Path, facts: Mapping[int, Facts],
    entered: Mapping[int, Mapping[str, int]], records: int,
) -> Parcel:  # fmt: skip
    """This host's, with so many of each ledger's records at most. A ledger that is not legible
    stays out.
    """
    files: dict[int, tuple[bytes, ...]] = {}
    for rank in facts:
        path = ledger_path(ledgers, rank)
        try:
            copy = CopiedLedger(ledgers, rank)
            try:
                table = path.with_suffix(".strings").read_bytes()
                both = tail(copy.content(), table, records)
            finally:
                copy.close()
            audits = audits_path(ledgers, rank)
            files[rank] = (*both, audits.read_bytes()) if audits.exists() else both
        except (LedgerError, OSError):
            continue
    now = time.monotonic()
    return Parcel(asked, read, now, time.time() - now, facts, entered, files)
