"""A ledger as its bytes were when it was looked at, whatever they are."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from esper.lockstep.errors import LedgerError
from esper.lockstep.record.entry import Entry
from esper.lockstep.record.ledger import COUNT, COUNT_AT, HEADER_SIZE, IDENTITY, MAGIC, RECORD_SIZE
from esper.lockstep.record.reader import LedgerReader

# More is no ledger of ours, and would not fit into memory.
_MOST_RECORDS = 1 << 22


class CopiedLedger(LedgerReader):
    """A reader of a copy: who reads a mapped file that is cut meanwhile is ended by a signal."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        """Copy it. Raises LedgerError, with a sentence, for a file that is missing, cut or no ledger."""
        super().__init__(run_dir, rank)
        self._copy, self._oldest = _copied(self.path)
        try:
            if not self.open():
                raise LedgerError(str(self.path), "its rank ended before it was made")
        finally:
            self._copy = None

    def _mapped(self) -> mmap.mmap | None:
        return self._copy

    def records(self) -> Iterator[Entry]:
        """All that it holds, oldest first. Raises LedgerError for what no rank has written."""
        self._read = self.lost = self._oldest
        try:
            self.groups()
            self.state()
            yield from self.new()
        except Exception as error:
            reason = f"record {max(0, self._read - 1)} is not legible ({type(error).__name__}: {error})"
            raise LedgerError(str(self.path), reason) from error

    def content(self) -> bytes:
        """The bytes of the ledger."""
        return b"" if self._map is None else bytes(self._map)

    @property
    def wrapped(self) -> bool:
        """Whether it has lost its oldest records; known once they have been read."""
        return self.lost > 0


def _copied(path: Path) -> tuple[mmap.mmap | None, int]:
    """The bytes, and the number of the oldest record that is not overwritten; None: no header yet."""
    try:
        # A pipe of that name would be waited for.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise LedgerError(str(path), "is missing") from error
    except OSError as error:
        raise LedgerError(str(path), f"can't be read: {error.strerror or error}") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise LedgerError(str(path), "is no file")
        return _copied_from(file, path)
    except OSError as error:
        raise LedgerError(str(path), f"can't be read: {error.strerror or error}") from error
    finally:
        os.close(file)


def _copied_from(file: int, path: Path) -> tuple[mmap.mmap | None, int]:
    header, size = _bytes(file, 0, HEADER_SIZE), os.fstat(file).st_size
    if len(header) < HEADER_SIZE:
        reason = f"is cut off at byte {size}, in its header" if size else "is empty"
        raise LedgerError(str(path), reason)
    magic, capacity, *_ = IDENTITY.unpack_from(header)
    if magic == b"\0" * len(MAGIC):
        return None, 0
    expected = HEADER_SIZE + RECORD_SIZE * capacity
    if magic == MAGIC and not (0 < capacity <= _MOST_RECORDS and size == expected):
        cut = f"is cut off at byte {size} of {expected}" if size < expected else f"has {size} bytes"
        raise LedgerError(str(path), f"{cut}, with a header for {capacity} records")
    records = _bytes(file, HEADER_SIZE, size - HEADER_SIZE)
    copy = mmap.mmap(-1, HEADER_SIZE + len(records))
    copy[:] = header + records
    # A rank that still lives wrote on meanwhile, over its oldest.
    (written,) = COUNT.unpack(_bytes(file, COUNT_AT, COUNT.size) or header[COUNT_AT : COUNT_AT + COUNT.size])
    before = COUNT.unpack_from(header, COUNT_AT)[0]
    oldest = written - capacity + 1 if written > before else 0
    return copy, max(0, oldest)


def _bytes(file: int, start: int, count: int) -> bytes:
    parts = []
    while count > 0 and (part := os.pread(file, count, start)):
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return b"".join(parts)
