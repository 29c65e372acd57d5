"""The reading end of a ledger, from outside the rank or after its death."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from esper.lockstep.errors import LedgerError
from esper.lockstep.record.entry import Entry, Kind, Site, State, Times
from esper.lockstep.record.ledger import (
    BEGUN_AT,
    CLOCK_AT,
    COMPILED,
    COMPILED_AT,
    COMPILING_AT,
    COUNT,
    COUNT_AT,
    F64,
    GAP_ENDED_AT,
    GAPS_AT,
    GROUP_TEXT,
    HEADER_SIZE,
    HEARTBEAT_AT,
    IDENTITY,
    MAGIC,
    OWN_THREADS_AT,
    RECORD,
    RECORD_SIZE,
    RUN,
    RUN_AT,
    RUN_TEXT,
    STATE_AT,
    THREADS_AT,
    TIMES,
    TIMES_AT,
    U32,
    ledger_path,
)
from esper.lockstep.record.outline import Outline

_KINDS = {kind.value: kind for kind in Kind}
_MOST_MEANINGS = 4096  # a program may name another line, or another size, in each of its calls


class _Meaning(NamedTuple):
    """What the ids of strings in a record stand for."""

    group: str
    op: str
    reduce_op: str | None
    dtype: str | None
    shape: tuple[int, ...] | None
    site: Site | None
    tag: str | None
    detail: dict[str, Any]
    legible: bool


class LedgerReader:
    """Follows one rank's ledger; every call returns what is there and never waits."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.path, self.rank = ledger_path(run_dir, rank), rank
        self.lost = 0  # records that the ring overwrote before they were read
        self.unknown = 0  # of what records refer to: what is not in the table
        self.pid = 0
        self.world_size = 0
        self.run = b""  # the bytes of its run's id; none where it was opened without
        self.clock_offset = 0.0  # seconds that the rank's clock on the wall was ahead of CLOCK_MONOTONIC
        self._capacity = 0
        self._map: mmap.mmap | None = None
        self._table: int | None = None
        self._read = 0
        self._hole = range(0)  # the records that were overwritten last
        self._strings: dict[int, Any] = {0: None}
        # What the ids in a record stand for, by those ids: programs repeat their calls.
        self._meanings: dict[tuple[int, ...], _Meaning] = {}
        self._partial = b""

    def open(self) -> bool:
        """Whether the ledger is there; False until the rank has made it. Raises LedgerError for another
        format.
        """
        if self._map is not None:
            return True
        view = self._mapped()
        if view is None:
            return False
        try:
            if len(view) < HEADER_SIZE or view[0:8] == b"\0" * 8:
                return False
            magic, capacity, world_size, rank, pid = IDENTITY.unpack_from(view, 0)
            if magic != MAGIC or rank != self.rank:
                reason = f"magic {magic!r}, rank {rank}: not a ledger of rank {self.rank}"
                raise LedgerError(str(self.path), reason)
            if len(view) < HEADER_SIZE + RECORD_SIZE * capacity:
                reason = f"cut off at byte {len(view)}; {capacity} records need more"
                raise LedgerError(str(self.path), reason)
            with suppress(FileNotFoundError):  # a ledger without its table: nothing in it is legible
                self._table = os.open(self.path.with_suffix(".strings"), os.O_RDONLY | os.O_NONBLOCK)
            (self.run,), (self.clock_offset,) = RUN.unpack_from(view, RUN_AT), F64.unpack_from(view, CLOCK_AT)
            self._map, self._capacity, self.world_size, self.pid = view, capacity, world_size, pid
        finally:
            if self._map is None:
                view.close()
        return True

    def _mapped(self) -> mmap.mmap | None:
        """The file's bytes; None while there are none."""
        try:
            with open(self.path, "rb") as file:
                return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError):  # not there yet, or still empty (an empty file can't be mapped)
            return None

    def new(self) -> Iterator[Entry]:
        """The records written since the last call, oldest first."""
        if not self.open():
            return iter(())
        assert self._map is not None
        count = COUNT.unpack_from(self._map, COUNT_AT)[0]
        return iter(()) if count == self._read else self._unread(self._map, count)

    def _unread(self, view: mmap.mmap, count: int) -> Iterator[Entry]:
        while self._read < count:
            number = self._read
            fields = RECORD.unpack_from(view, self._at(number))
            # The writer goes on meanwhile: with `capacity` records more it may be writing over this one.
            oldest = COUNT.unpack_from(view, COUNT_AT)[0] - self._capacity + 1
            if number < oldest:
                self._read = min(oldest, count)
                self.lost += self._read - number
                self._hole = range(number, self._read)
                continue
            self._read += 1
            yield self._entry(number, fields)

    @property
    def position(self) -> int:
        """The number of the next record to read."""
        return self._read

    def written(self) -> int:
        """How many records there are, read or not."""
        count: int = COUNT.unpack_from(self._map, COUNT_AT)[0] if self.open() and self._map else 0
        return count

    def begun(self) -> int | None:
        """The number of the record with which the rank's program began; None where there is none."""
        number: int = COUNT.unpack_from(self._map, BEGUN_AT)[0] - 1 if self._map is not None else -1
        return None if number < 0 else number

    def begun_unread(self) -> int | None:
        """As `begun`, if that record was overwritten unread."""
        number = self.begun()
        return number if number is not None and number in self._hole else None

    def skip(self) -> None:
        """Pass over everything written so far."""
        if self.open():
            assert self._map is not None
            self._read = COUNT.unpack_from(self._map, COUNT_AT)[0]

    def skip_to(self, number: int) -> None:
        """Pass over the records before `number`, or none where that is behind."""
        self._read = max(self._read, number)

    def outline(self) -> Outline:
        """What is not read yet, oldest first, at a fiftieth of the cost of reading it; nothing where the ring
        has overwritten some of it.
        """
        if not self.open() or self._map is None:
            return Outline.of(self._read, b"")
        count = COUNT.unpack_from(self._map, COUNT_AT)[0]
        if count - self._read >= self._capacity:
            return Outline.of(self._read, b"")
        first, after = self._at(self._read), self._at(count)
        ring = HEADER_SIZE, HEADER_SIZE + RECORD_SIZE * self._capacity
        parts = [(first, after)] if first <= after else [(first, ring[1]), (ring[0], after)]
        copied = b"".join(self._map[start:end] for start, end in parts)
        if COUNT.unpack_from(self._map, COUNT_AT)[0] - self._read >= self._capacity:
            return Outline.of(self._read, b"")  # overwritten while it was copied
        return Outline.of(self._read, copied)

    @property
    def capacity(self) -> int:
        """How many records the ring holds."""
        return self._capacity

    def string(self, number: int) -> Any:
        """What the rank's table has under this id; None where it has nothing."""
        if number not in self._strings:
            self._read_strings()
        return self._strings.get(number)

    def groups(self) -> dict[str, dict[str, Any]]:
        """What GROUP's records said of each group, also where the ring has overwritten them since."""
        self._read_strings()
        found: dict[str, dict[str, Any]] = {}
        for value in self._strings.values():
            if isinstance(value, list) and len(value) == 3 and value[0] == GROUP_TEXT:
                found[value[1]] = json.loads(value[2])
        return found

    def table_run(self) -> str | None:
        """The id of the run that the table is of, in hexadecimal digits; None where it says none."""
        self._read_strings()
        found = (value for value in self._strings.values() if isinstance(value, list) and len(value) == 2)
        return next((str(run) for what, run in found if what == RUN_TEXT), None)

    def entry(self, number: int) -> Entry:
        """Record `number`, which the ring holds still."""
        assert self._map is not None
        return self._entry(number, RECORD.unpack_from(self._map, self._at(number)))

    def times(self, number: int) -> Times | None:
        """The times of record `number` as they are now; None when the ring has overwritten it."""
        assert self._map is not None
        times = Times(*TIMES.unpack_from(self._map, self._at(number) + TIMES_AT))
        if COUNT.unpack_from(self._map, COUNT_AT)[0] - number >= self._capacity:
            return None
        return times

    def since(self, number: int) -> Iterator[tuple[int, int, Times]]:
        """Number, kind and times of each record from `number` on that the ring holds, whether read or not."""
        if self._map is None:
            return
        count = COUNT.unpack_from(self._map, COUNT_AT)[0]
        for index in range(max(number, count - self._capacity + 1), count):
            at = self._at(index)
            kind: int = U32.unpack_from(self._map, at)[0]
            yield index, kind, Times(*TIMES.unpack_from(self._map, at + TIMES_AT))

    def state(self) -> State:
        """Where the rank's program is."""
        return State(U32.unpack_from(self._map, STATE_AT)[0]) if self.open() and self._map else State.STARTING

    def threads(self) -> int:
        """How many Python threads the rank had when it last began to wait, ours left out."""
        if not self.open() or self._map is None:
            return 0
        count: int = U32.unpack_from(self._map, THREADS_AT)[0]
        own: int = U32.unpack_from(self._map, OWN_THREADS_AT)[0]
        return count - own

    def heartbeat(self) -> float:
        """When the rank last said that its program still runs Python code; 0.0: never."""
        if not self.open() or self._map is None:
            return 0.0
        at: float = F64.unpack_from(self._map, HEARTBEAT_AT)[0]
        return at

    def gaps(self) -> tuple[float, float]:
        """Seconds in all of gaps between its heartbeats, and when the last of them ended; 0.0: none."""
        if not self.open() or self._map is None:
            return 0.0, 0.0
        in_all: float = F64.unpack_from(self._map, GAPS_AT)[0]
        ended: float = F64.unpack_from(self._map, GAP_ENDED_AT)[0]
        return in_all, ended

    def compiled(self, now: float) -> tuple[float, float | None]:
        """How many seconds the rank has compiled until now, and since when it does; None: it does not."""
        if not self.open() or self._map is None:
            return 0.0, None
        compiled: float = COMPILED.unpack_from(self._map, COMPILED_AT)[0]
        if compiled >= 0.0:
            return compiled, None
        return max(0.0, now + compiled), COMPILED.unpack_from(self._map, COMPILING_AT)[0]

    def close(self) -> None:
        """Unmap the file."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._table is not None:
            os.close(self._table)
            self._table = None

    def _at(self, number: int) -> int:
        return HEADER_SIZE + number % self._capacity * RECORD_SIZE

    def _read_strings(self) -> None:
        if self._table is None:
            return
        while chunk := os.read(self._table, 1 << 20):
            self._partial += chunk
        *lines, self._partial = self._partial.split(b"\n")
        for line in lines:
            number, _, text = line.partition(b" ")
            with suppress(ValueError):  # cut off, for want of room
                self._strings[int(number)] = json.loads(text)

    def _entry(self, number: int, fields: tuple[Any, ...]) -> Entry:
        kind, group, sequence, op, reduce_op, dtype, shape, site, tag, detail = fields[:10]
        root, peer, elements, digest = fields[10:14]
        ids = (group, op, reduce_op, dtype, shape, site, tag, detail)
        meaning = self._meanings.get(ids) or self._meaning(ids)
        return Entry(
            self.rank,
            number,
            _KINDS[kind],
            meaning.group,
            sequence,
            meaning.op,
            meaning.reduce_op,
            meaning.dtype,
            meaning.shape,
            meaning.site,
            meaning.tag,
            meaning.detail,
            root,
            peer,
            elements,
            digest,
            Times(*fields[14:]),
            meaning.legible,
        )

    def _meaning(self, ids: tuple[int, ...]) -> _Meaning:
        self._read_strings()  # each is written before the record that names it
        # A string that the disk had no room for, or one of a table that was cut, reads as absent.
        group, op, reduce_op, dtype, shape, site, tag, detail = map(self._strings.get, ids)
        meaning = _Meaning(
            group or "",
            op or "",
            reduce_op,
            None if dtype is None else dtype.removeprefix("torch."),
            None if shape is None else tuple(shape),
            None if site is None else Site(*site),
            tag,
            json.loads(detail) if detail else {},
            legible=all(index in self._strings for index in ids[:4]),
        )
        if all(index in self._strings for index in ids):  # what is missing may still come
            if len(self._meanings) >= _MOST_MEANINGS:
                self._meanings.clear()
            self._meanings[ids] = meaning
        else:
            self.unknown += 1
        return meaning
