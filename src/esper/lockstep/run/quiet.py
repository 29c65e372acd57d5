"""Waits, without Python, while only time can decide anything about a run: quiet.cpp with what it has to know.

Nothing needs it. Where it is not built, or has met something that it can't follow, its caller polls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from esper.lockstep.building import cached, compile_library, wanted
from esper.lockstep.proof.matching import Matching
from esper.lockstep.record.ledger import COUNT_AT, HEADER_SIZE, RECORD_SIZE
from esper.lockstep.record.reader import LedgerReader

_SOURCE = Path(__file__).with_name("quiet.cpp")

# Seconds between two looks. What is proved is proved that much later, at most.
_TICK = 0.008
# After so long a collective in which some wait is looked at, and again after as long.
_UNMOVED = 0.05
_LONGEST = 0.25
# So many of a group's last collectives are always read: their data may be under way still.
_KEPT = 32
_MOST_THREADS = 32


class _Reason(IntEnum):
    """Why the wait was over, as quiet.cpp has it."""

    BROKEN = -1
    TIME = 0
    FILE_READY = 1
    UNUSUAL = 2
    UNKNOWN_GROUP = 3
    INTERRUPTED = 4


def library_path() -> Path:
    """Where the compiled library is, or would be."""
    return cached(_SOURCE)


def build() -> Path:
    """Compile it and return where it is; done at once where it is there. Raises KernelNotBuilt."""
    return compile_library(_SOURCE, library_path(), ["-std=c++17"])


class Quiet:
    """Follows the ledgers of one run as long as they hold what a healthy program writes."""

    def __init__(self, readers: Sequence[LedgerReader], matching: Matching) -> None:
        self._readers, self._matching = readers, matching
        self._library: Any = None
        self._given_up = False
        self._handle: int | None = None
        self._groups: dict[str, int] = {}
        self._read = (ctypes.c_uint64 * len(readers))()
        self._unknown = (ctypes.c_uint64 * 2)()
        self._threads = (ctypes.c_uint32 * _MOST_THREADS)()
        self._numbers = (ctypes.c_uint64 * _MOST_THREADS)()

    def wait(self, file: int) -> bool:
        """Wait until `file` is readable, or until there is something to see or to think about; False, at
        once, where it can't be followed. To be called only after all that was read has been judged, and
        found to be what only time decides.
        """
        if not self._ready():
            return False
        for rank, reader in enumerate(self._readers):
            self._read[rank] = reader.position
        if self._unknown[1]:
            self._name(*self._unknown)
            self._unknown[1] = 0
        reason = _Reason(
            self._library.quiet_wait(self._handle, file, _TICK, _UNMOVED, _LONGEST, self._read, self._unknown)
        )
        if reason is _Reason.BROKEN:
            self._give_up()
        return reason is not _Reason.BROKEN

    def pass_over(self) -> Iterator[tuple[int, int]]:
        """Spare the readers what was settled long ago. Yields (rank, number) of the last record of each
        thread in it.
        """
        if self._handle is None:
            return
        before = [reader.position for reader in self._readers]
        for rank, reader in enumerate(self._readers):
            count = ctypes.c_int()
            reader.skip_to(
                self._library.quiet_skip(
                    self._handle,
                    rank,
                    reader.position,
                    _KEPT,
                    self._threads,
                    self._numbers,
                    ctypes.byref(count),
                )
            )
            yield from ((rank, number) for number in sorted(self._numbers[: count.value]))
        if before != [reader.position for reader in self._readers]:
            for name, group in self._groups.items():
                self._matching.pass_over(name, self._library.quiet_settled(self._handle, group) - _KEPT)

    def close(self) -> None:
        """Unmap the ledgers."""
        if self._handle is not None:
            self._library.quiet_delete(self._handle)
            self._handle = None

    def _ready(self) -> bool:
        if self._handle is not None:
            return True
        if self._given_up or not all(reader.open() for reader in self._readers):
            return False
        self._library = _library()
        if self._library is not None:
            self._handle = self._library.quiet_new(len(self._readers), HEADER_SIZE, RECORD_SIZE, COUNT_AT)
        if self._handle is None or any(
            self._library.quiet_open(self._handle, rank, bytes(reader.path), reader.capacity)
            for rank, reader in enumerate(self._readers)
        ):
            self._give_up()
        return not self._given_up

    def _give_up(self) -> None:
        self.close()
        self._given_up = True

    def _name(self, rank: int, number: int) -> None:
        """Say what group the rank's table calls `number`; one whose members are not known is not followed."""
        name = self._readers[rank].string(number)
        members = self._matching.members(name) if isinstance(name, str) else ()
        group = -1
        if members:
            if name not in self._groups:
                self._groups[name] = self._library.quiet_add_group(self._handle, len(members))
            group = self._groups[name]
        self._library.quiet_name(self._handle, rank, number, group)


@cache
def _library() -> Any:
    """The compiled library; None where it is not built, not wanted or can't be loaded."""
    path = library_path()
    if not wanted() or not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    pointer, double, u64 = ctypes.c_void_p, ctypes.c_double, ctypes.c_uint64
    u64s, u32s = ctypes.POINTER(u64), ctypes.POINTER(ctypes.c_uint32)
    for name, result, arguments in (
        ("quiet_new", pointer, (ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)),
        ("quiet_delete", None, (pointer,)),
        ("quiet_open", ctypes.c_int, (pointer, ctypes.c_int, ctypes.c_char_p, u64)),
        ("quiet_add_group", ctypes.c_int, (pointer, ctypes.c_int)),
        ("quiet_name", None, (pointer, ctypes.c_int, ctypes.c_uint32, ctypes.c_int)),
        ("quiet_wait", ctypes.c_int, (pointer, ctypes.c_int, double, double, double, u64s, u64s)),
        ("quiet_settled", ctypes.c_int64, (pointer, ctypes.c_int)),
        (
            "quiet_skip",
            u64,
            (pointer, ctypes.c_int, u64, ctypes.c_int64, u32s, u64s, ctypes.POINTER(ctypes.c_int)),
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
