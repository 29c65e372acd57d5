"""The end of a ledger, as a smaller ledger: what is sent to who can't read the file itself."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

from esper.lockstep.record.ledger import (
    COUNT,
    COUNT_AT,
    GROUP_TEXT,
    HEADER_SIZE,
    IDENTITY,
    RECORD_SIZE,
    RUN_TEXT,
)

# Past kind and sequence, the ids of the strings.
_IDS = struct.Struct("<4xI4x7I")


def tail(ledger: bytes, table: bytes, records: int) -> tuple[bytes, bytes]:
    """A ledger and its table with the last `records` records at most, and the strings that they need.

    `ledger` must not change meanwhile, and hold its newest records whole.
    """
    magic, capacity, *rest = IDENTITY.unpack_from(ledger)
    (count,) = COUNT.unpack_from(ledger, COUNT_AT)
    kept = range(max(0, count - min(records, capacity - 1)), count)
    room = len(kept) + 1  # the oldest of a full ring is the one that may be written over next
    ring = bytearray(RECORD_SIZE * room)
    needed: set[int] = set()
    for number in kept:
        start = HEADER_SIZE + number % capacity * RECORD_SIZE
        at = number % room * RECORD_SIZE
        ring[at : at + RECORD_SIZE] = record = ledger[start : start + RECORD_SIZE]
        needed.update(_IDS.unpack_from(record))
    header = bytearray(ledger[:HEADER_SIZE])
    IDENTITY.pack_into(header, 0, magic, room, *rest)
    return bytes(header + ring), b"".join(_lines(table, needed))


def _lines(table: bytes, needed: set[int]) -> list[bytes]:
    """The lines of the strings with these ids, and those that no record refers to."""
    *lines, _ = table.split(b"\n")  # the last is being written, or empty
    kept = []
    for line in lines:
        number, _, text = line.partition(b" ")
        with suppress(ValueError):
            if int(number) in needed or _told_to_readers(text):
                kept.append(line + b"\n")
    return kept


def _told_to_readers(text: bytes) -> bool:
    if not text.startswith(b"["):
        return False
    value = json.loads(text)
    return bool(value) and value[0] in (GROUP_TEXT, RUN_TEXT)
