"""The last audits of one rank in full, beside its ledger: which tensor differs, once totals do.

`rank<R>.audits` holds `SLOTS` slots in a ring. A slot is the number of its audit (from 1, written last), the
count of its values, and up to `MOST` values of 64 bits.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from esper.lockstep.errors import LedgerError

SLOTS, MOST = 16, 1023
_HEAD = struct.Struct("<QI4x")
_SLOT = _HEAD.size + 8 * MOST


def audits_path(run_dir: Path, rank: int) -> Path:
    """Where rank `rank` keeps its audits."""
    return run_dir / f"rank{rank}.audits"


class Audits:
    """The writing end, in the rank."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        """Create the file, mode 0600. Raises LedgerError when the disk has no room for it."""
        path = audits_path(run_dir, rank)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SLOTS * _SLOT)
                self._map = mmap.mmap(fd, SLOTS * _SLOT)
            finally:
                os.close(fd)
        except OSError as error:
            reason = f"{error.strerror or error}; it needs {SLOTS * _SLOT} bytes there"
            raise LedgerError(str(path), reason) from error
        self._count = 0

    def append(self, values: Sequence[int]) -> int:
        """Keep signed 64-bit values, the first `MOST` of them; the audit's number."""
        self._count += 1
        at = self._count % SLOTS * _SLOT
        kept = values[:MOST]
        _HEAD.pack_into(self._map, at, 0, len(kept))
        struct.pack_into(f"<{len(kept)}q", self._map, at + _HEAD.size, *kept)
        _HEAD.pack_into(self._map, at, self._count, len(kept))
        return self._count


def lacking(path: Path) -> str | None:
    """What is wrong with the file as a whole; None where nothing is."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"can't be read: {error.strerror}"
    return None if size == SLOTS * _SLOT else f"is cut off at byte {size} of {SLOTS * _SLOT}"


def read_audit(run_dir: Path, rank: int, number: int) -> tuple[int, ...] | None:
    """The values of one audit; None when they were overwritten, or are not there."""
    try:
        with open(audits_path(run_dir, rank), "rb") as file:
            file.seek(number % SLOTS * _SLOT)
            data = file.read(_SLOT)
            file.seek(number % SLOTS * _SLOT)
            after = file.read(_HEAD.size)
    except OSError:
        return None
    if len(data) < _SLOT or data[: _HEAD.size] != after:
        return None
    written, count = _HEAD.unpack_from(data)
    return struct.unpack_from(f"<{count}q", data, _HEAD.size) if written == number else None
