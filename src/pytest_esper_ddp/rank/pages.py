"""Pages that new ranks are known to write to, copied for each in one go before it begins.

One by one, as they are written to, that takes twice as long. Which they are is learned from two ranks: new
ranks for a test do the same until the test begins, and much of it after.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import re
from array import array
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import chain

from esper.lockstep.rank.libc import libc
from pytest_esper_ddp.rank.memory import PAGE, own_memory

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE
_MOST_RUNS = 1024  # that one call takes
_MOST_PAGES = 8192  # more are what one test does with large tensors of its file, and no other may do
_ASKED = (0, 1)  # ranks
_TRIES = 8  # they may be ended before they can say it
_ENTRY = 8  # bytes, of a process's page map (pagemap.rst)
# The highest of them: 7 present, 5 of a file, 0 mapped once.
_OWN = bytes(flags & 0b10100001 == 0b10000001 for flags in range(256))


class _Run(ctypes.Structure):
    _fields_ = [("first", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class CopiedAhead:
    """What the process that ranks are forked from knows of them."""

    def __init__(self) -> None:
        self._told: list[tuple[int, ...]] = []  # files, where those say it at their end who are asked
        self._runs: list[ctypes.Array[_Run]] = []  # for a call each
        self._parts: list[tuple[int, int]] = []  # of our memory, which is also where theirs are
        self._learns = hasattr(libc(), "process_madvise")

    def before_forks(self) -> None:
        """Ranks of a test are about to be forked."""
        if not self._learns:
            return
        told = next((files for files in self._told if all(os.fstat(file).st_size for file in files)), None)
        if told is None and len(self._told) < _TRIES:  # the last ones may still be leaving
            self._told.append(tuple(os.memfd_create("pages") for _ in _ASKED))
            self._parts = list(own_memory())
            return
        if told is not None:
            self._runs = _runs(set.intersection(*map(_read, told)))
        for file in chain.from_iterable(self._told):
            os.close(file)
        self._told, self._learns = [], False

    def in_rank(self, rank: int) -> None:
        """In a forked rank, before anything else."""
        if self._runs:
            _copy(self._runs)
        mine = self._told[-1][_ASKED.index(rank)] if self._told and rank in _ASKED else None
        for file in chain.from_iterable(self._told):
            if file != mine:
                os.close(file)
        if mine is not None:
            atexit.register(_tell, mine, os.getpid(), self._parts)


def _copy(calls: list[ctypes.Array[_Run]]) -> None:
    # Where the system can't, since Linux 6.13 can, or a part is no longer there, they are copied as usual.
    with suppress(OSError), closing(os.fdopen(os.pidfd_open(os.getpid()))) as me:
        for runs in calls:
            libc().process_madvise(me.fileno(), runs, ctypes.c_size_t(len(runs)), _POPULATE_WRITE, 0)


def _tell(file: int, rank: int, parts: Sequence[tuple[int, int]]) -> None:
    """In the rank at its end: the pages of `parts` that are its own by now."""
    if os.getpid() != rank:  # what a test has forked
        return
    # To memory of their own, and all before the first is looked at: else those that this takes are told, too.
    found = mmap.mmap(-1, sum(end - first for first, end in parts) // PAGE * _ENTRY)
    read = 0
    with suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as entries:
        for first, end in parts:
            here = (end - first) // PAGE * _ENTRY
            os.preadv(entries.fileno(), [memoryview(found)[read : read + here]], first // PAGE * _ENTRY)
            read += here
    flags = found[7:read:_ENTRY].translate(_OWN)
    pages = array("Q")
    done = 0
    for first, end in parts:
        for run in re.finditer(b"\1+", flags[done : (done := done + (end - first) // PAGE)]):
            pages.extend(range(first // PAGE + run.start(), first // PAGE + run.end()))
    os.write(file, pages.tobytes())


def _read(file: int) -> set[int]:
    pages = array("Q")
    pages.frombytes(os.pread(file, os.fstat(file).st_size, 0))
    return set(pages)


def _runs(pages: set[int]) -> list[ctypes.Array[_Run]]:
    """Those of them that are here, too, as runs without a gap."""
    here = set[int]()
    for first, end in own_memory():
        here.update(range(first // PAGE, end // PAGE))
    pages &= here
    if len(pages) > _MOST_PAGES:
        return []
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and page == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([page, 1])
    all_runs = [_Run(first * PAGE, count * PAGE) for first, count in runs]
    calls = [all_runs[first : first + _MOST_RUNS] for first in range(0, len(runs), _MOST_RUNS)]
    return [(_Run * len(call))(*call) for call in calls]
