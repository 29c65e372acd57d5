"""What one rank did: a ring of fixed-size records in a mapped file, beside an append-only string table.

The file outlives SIGKILL and can be read while its rank is stopped. A record is packed first and counted
after, so a reader never sees a torn one; a string is in the table before a record refers to it. The oldest
record of a full ring is the one that may be overwritten next, so a reader counts on `capacity` - 1 of them.

Layout of `rank<R>.ledger`: a header page, then `capacity` records of `RECORD_SIZE` bytes. Times are seconds
of CLOCK_MONOTONIC, which all processes of one machine share. `rank<R>.strings` holds `ID JSON`, one a line; a
line that was cut (no room, a writer killed in it) is no valid one and is skipped. Id 0 is null.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Hashable
from pathlib import Path

from esper.lockstep.errors import LedgerError
from esper.lockstep.record.entry import State

MAGIC = b"ESPRLS1\0"
HEADER_SIZE = 4096
RECORD_SIZE = 104
DEFAULT_CAPACITY = 1 << 13
# What begins the value of a string that no record refers to: it says what a GROUP's record says, as long as
# the table is there.
GROUP_TEXT = "group"
RUN_TEXT = "run"  # and of the one that says of which run the table is
NO_ROOM = 0xFFFFFFFF  # in place of a string's id: the disk had no room for it

# magic, capacity, world size, rank, pid
IDENTITY = struct.Struct("<8sIiii")
# record count, state, live threads, heartbeat, id of the main thread, number of the last BEGIN's record + 1
COUNT = struct.Struct("<Q")
COUNT_AT, STATE_AT, THREADS_AT, HEARTBEAT_AT, MAIN_THREAD_AT, BEGUN_AT = 64, 72, 76, 80, 88, 96
# The seconds that the rank has compiled so far; while it compiles instead, negative, the moment at which it
# would have begun had it never paused. And when it began last. Native, for that is written in one store:
# whoever reads the first at any moment has the seconds up to then.
COMPILED = struct.Struct("d")
COMPILED_AT, COMPILING_AT = 104, 112
# Which run this is, its length before it. And by how many seconds the machine's clock on the wall was ahead
# of CLOCK_MONOTONIC when the ledger was opened: ledgers of two machines are brought onto one clock by it.
RUN = struct.Struct("<17p")
RUN_AT, CLOCK_AT = 120, 144
MOST_RUN = 16  # bytes
# How many of the live threads are lockstep's own.
OWN_THREADS_AT = 192
# Seconds in all in which a rank that says every moment that it is there did not get to say so, and when the
# last such gap ended.
GAPS_AT, GAP_ENDED_AT = 200, 208
GAP = 2.0  # less is no gap
U32, F64 = struct.Struct("<I"), struct.Struct("<d")
# kind group sequence op reduce_op dtype shape site tag detail | root peer | elements digest | issued
# wait_begun
# wait_ended done | thread flags
RECORD = struct.Struct("<10I2i2Q4d2I")
TIMES = struct.Struct("<4d2I")
TIMES_AT = struct.calcsize("<10I2i2Q")
FLAGS_AT = TIMES_AT + struct.calcsize("<4dI")
assert RECORD.size == RECORD_SIZE


def ledger_path(run_dir: Path, rank: int) -> Path:
    """Where rank `rank` of the run keeps its ledger."""
    return run_dir / f"rank{rank}.ledger"


class Ledger:
    """The writing end, in the rank; safe with threads and in signal handlers, without a lock that a handler
    could find taken.
    """

    # The compiled kernel counts records, too, where the number lies.
    __slots__ = (
        "_count", "_cut", "_detached", "_ids", "_map", "_next_id", "_strings", "_table",
        "capacity", "is_open", "path", "rank", "world_size",
    )  # fmt: skip

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        world_size: int,
        capacity: int = DEFAULT_CAPACITY,
        *,
        run: bytes = b"",
    ) -> None:
        """Create the two files, mode 0600. Raises LedgerError when the disk has no room for them, or `run` is
        too long.
        """
        self._start()
        self.open(run_dir, rank, world_size, capacity, run=run)

    @classmethod
    def unopened(cls) -> Ledger:
        """The ledger of a rank that is not known yet: what is written before `open` goes nowhere."""
        ledger = cls.__new__(cls)
        ledger._start()
        return ledger

    def _start(self) -> None:
        self.path, self.rank, self.world_size, self.capacity = Path(), -1, 0, 1
        self.is_open = False
        self._map = mmap.mmap(-1, HEADER_SIZE + RECORD_SIZE)
        self._detached = True
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._ids: dict[Hashable, int] = {None: 0}
        self._next_id = 1
        self._cut = False

    def open(self, run_dir: Path, rank: int, world_size: int, capacity: int, *, run: bytes = b"") -> None:
        """Create the files, once. `run`: the bytes of the run's id, by which a file of another is told.

        Raises LedgerError when the disk has no room for them, or `run` is too long.
        """
        path = ledger_path(run_dir, rank)
        if len(run) > MOST_RUN:
            raise LedgerError(str(path), f"run={run!r} must be at most {MOST_RUN} bytes")
        size = HEADER_SIZE + RECORD_SIZE * capacity
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                # A sparse file on a full disk would end the rank with SIGBUS at its first record.
                os.posix_fallocate(fd, 0, size)
                self._map = mmap.mmap(fd, size)
            finally:
                os.close(fd)
            self._strings = os.open(
                path.with_suffix(".strings"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600
            )
        except OSError as error:
            raise LedgerError(str(path), f"{error.strerror or error}; it needs {size} bytes there") from error
        self.path, self.rank, self.world_size, self.capacity = path, rank, world_size, capacity
        self._begin()
        self._detached = False
        self._table = os.fstat(self._strings)
        IDENTITY.pack_into(self._map, 0, b"\0" * 8, capacity, world_size, rank, os.getpid())
        RUN.pack_into(self._map, RUN_AT, run)
        F64.pack_into(self._map, CLOCK_AT, time.time() - time.monotonic())
        self.set_main_thread(threading.get_native_id())
        self.set_state(State.STARTING)
        self.is_open = True
        if run:
            self.string((RUN_TEXT, run.hex()))
        # Last, so that whoever finds the magic finds a whole header and the table beside it.
        self._map[0:8] = MAGIC

    def string(self, value: Hashable) -> int:
        """The id of a JSON-serialisable value; 0 for None, NO_ROOM for what the disk had no room for."""
        known = self._ids.get(value)
        if known is not None:
            return known
        if self._detached:
            return NO_ROOM
        # Taken in one step (see `append`): two threads, or a handler in between, at worst write it twice.
        known = self._next_id
        self._next_id = known + 1
        if not self._write_line(f"{known} {json.dumps(value, default=str)}\n".encode()):
            return NO_ROOM
        return self._ids.setdefault(value, known)

    def _write_line(self, line: bytes) -> bool:
        # What a full disk cut off must not swallow the line that follows it.
        line = b"\n" + line if self._cut else line
        try:
            if not self._has_table():
                return False
            written = os.write(self._strings, line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return False
        self._cut = written != len(line)
        return not self._cut

    def _has_table(self) -> bool:
        """Whether the table can be written. A program that closes all files, a daemon say, closes it, too,
        and may have given its number to a file of its own: then it is opened anew.
        """
        try:
            if os.path.samestat(os.fstat(self._strings), self._table):
                return True
        except OSError:
            pass
        if self._detached:
            return False
        try:
            self._strings = os.open(self.path.with_suffix(".strings"), os.O_WRONLY | os.O_APPEND)
        except OSError:
            return False
        return True

    def append(
        self,
        kind: int,
        group: int = 0,
        sequence: int = 0,
        op: int = 0,
        reduce_op: int = 0,
        dtype: int = 0,
        shape: int = 0,
        site: int = 0,
        tag: int = 0,
        detail: int = 0,
        root: int = -1,
        peer: int = -1,
        elements: int = 0,
        digest: int = 0,
        wait_begun: float = 0.0,
        thread: int = 0,
        flags: int = 0,
    ) -> int:
        """Write one record issued now, and return its number, by which `stamp` finds it again."""
        now = time.monotonic()
        # CPython changes threads and runs signal handlers after calls, never between these lines and the
        # end of the packing: each record has its own number, and none below the count is unwritten.
        number = self._count
        self._count = number + 1
        RECORD.pack_into(
            self._map,
            HEADER_SIZE + number % self.capacity * RECORD_SIZE,
            kind,
            group,
            sequence,
            op,
            reduce_op,
            dtype,
            shape,
            site,
            tag,
            detail,
            root,
            peer,
            elements,
            digest,
            now,
            wait_begun,
            0.0,
            0.0,
            thread,
            flags,
        )
        COUNT.pack_into(self._map, COUNT_AT, self._count)
        return number

    def stamp(self, number: int, which: int, flags: int = 0, without: int = 0) -> None:
        """Set one time of record `number` to now, add `flags` and take those of `without` away; nothing when
        the ring has overwritten it.
        """
        if number < self._count - self.capacity:
            return
        at = HEADER_SIZE + number % self.capacity * RECORD_SIZE
        if flags or without:
            before: int = U32.unpack_from(self._map, at + FLAGS_AT)[0]
            U32.pack_into(self._map, at + FLAGS_AT, before & ~without | flags)
        F64.pack_into(self._map, at + TIMES_AT + 8 * which, time.monotonic())

    def set_flags(self, number: int, flags: int) -> None:
        """Set the flags of record `number`, which was just written and which nobody else has seen."""
        U32.pack_into(self._map, HEADER_SIZE + number % self.capacity * RECORD_SIZE + FLAGS_AT, flags)

    def set_state(self, state: State) -> None:
        """Where the program is."""
        U32.pack_into(self._map, STATE_AT, state)

    def set_threads(self, count: int) -> None:
        """How many Python threads are alive: with more than the waiting one, a wait cycle is no proof."""
        U32.pack_into(self._map, THREADS_AT, count)

    def set_own_threads(self, count: int) -> None:
        """How many of the live threads are lockstep's own: none of them issues anything."""
        U32.pack_into(self._map, OWN_THREADS_AT, count)

    def set_main_thread(self, native_id: int) -> None:
        """The kernel's id of the thread that runs the program."""
        U32.pack_into(self._map, MAIN_THREAD_AT, native_id)

    def set_begun(self, number: int) -> None:
        """Which record says what program runs now: the ring may overwrite it before it is read."""
        COUNT.pack_into(self._map, BEGUN_AT, number + 1)

    def set_compiling(self, compiles: bool) -> None:
        """Whether the rank compiles, from now on. To be said by one thread at a time."""
        now = time.monotonic()
        compiled: float = COMPILED.unpack_from(self._map, COMPILED_AT)[0]
        if compiles and compiled >= 0.0:
            COMPILED.pack_into(self._map, COMPILING_AT, now)
            COMPILED.pack_into(self._map, COMPILED_AT, compiled - now)
        elif not compiles and compiled < 0.0:
            COMPILED.pack_into(self._map, COMPILED_AT, compiled + now)

    def heartbeat(self) -> None:
        """Say that the rank's program still runs Python code. To be said by one thread, twice in `GAP`
        seconds: a longer gap is kept, since whoever waited meanwhile may have been stopped with all others.
        """
        now = time.monotonic()
        before: float = F64.unpack_from(self._map, HEARTBEAT_AT)[0]
        if before and now - before > GAP:
            gaps: float = F64.unpack_from(self._map, GAPS_AT)[0]
            F64.pack_into(self._map, GAPS_AT, gaps + now - before)
            F64.pack_into(self._map, GAP_ENDED_AT, now)
        F64.pack_into(self._map, HEARTBEAT_AT, now)

    def detach(self) -> None:
        """In a forked child: whatever it still writes goes nowhere. Pages and table are its parent's, and a
        name that two processes give one id makes the ledger unreadable.
        """
        self._map = mmap.mmap(-1, len(self._map))
        self._detached = True

    def retire(self) -> None:
        """Let go of the files, which stay: whatever is still written goes nowhere."""
        if self._has_table():
            os.close(self._strings)
        self.detach()

    def close(self) -> None:
        """Unmap; the files stay."""
        self._map.close()
        if self._has_table():
            os.close(self._strings)
