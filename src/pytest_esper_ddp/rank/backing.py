"""Memory of the process that ranks are forked from, moved into files: backing.cpp with what it has to know.

A fork copies the table of all pages that belong to no file, 40,000 with torch loaded, and each rank's end
goes through it again. Of a file's pages nothing is copied: a rank finds there what it reads, sixteen pages
at a time or a large one at once. That makes a test on four new ranks 7 to 15 % shorter. It costs 0.2 s of a
processor, as much as some 25 of them spare.

Nothing needs it. Where it is not built, or something speaks against it, the memory stays what it was.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from esper.lockstep.building import cached, compile_library, wanted
from esper.lockstep.rank.libc import libc

_SOURCE = Path(__file__).with_name("backing.cpp")
_LEAST = 1 << 20  # bytes: what is smaller has no pages to speak of
# What the kernel says of memory that malloc and the interpreter have asked for, large pages or not. Whatever
# has been asked for besides, say that a fork is not to see it, would be lost.
_USUAL = frozenset(("rd", "wr", "mr", "mw", "me", "ac", "sd", "hg"))


class _Part(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint64), ("length", ctypes.c_uint64)]


def library_path() -> Path:
    """Where the compiled library is, or would be."""
    return cached(_SOURCE)


def build() -> Path:
    """Compile it and return where it is; done at once where it is there. Raises KernelNotBuilt."""
    return compile_library(_SOURCE, library_path(), ["-std=c++17"])


def move_into_files() -> int:
    """Do that with what can be moved; the bytes that were. To be called where no other thread runs."""
    path = library_path()
    if not wanted() or not path.is_file() or not _may():
        return 0
    try:
        library: Any = ctypes.CDLL(str(path))
    except OSError:
        return 0
    found = list(_parts())
    parts = (_Part * len(found))(*(_Part(first, length) for first, length in found))
    moved: int = library.backing_move(parts, len(found))
    return sum(length for _, length in found[:moved])


def _may() -> bool:
    with suppress(OSError, ValueError):
        # Where memory is promised only as far as there is some, both copies could be too much for a moment.
        strict = int(Path("/proc/sys/vm/overcommit_memory").read_text()) == 2
        return not strict and len(os.listdir("/proc/self/task")) == 1
    return False


def _parts() -> Iterator[tuple[int, int]]:
    """First address and bytes of each part of the memory that may be moved and is worth it."""
    of_thread = libc().pthread_self
    of_thread.restype = ctypes.c_void_p
    mine = of_thread()  # the kernel writes there when it likes (rseq)
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        for line in lines:
            name, *values = line.split(maxsplit=5)
            if not name.endswith(":"):  # the first of several lines on a part
                first, end = (int(address, 16) for address in name.split("-"))
                anonymous = values[0] == "rw-p" and values[4:] in ([], ["[heap]\n"])
            elif name == "Rss:":
                present = int(values[0]) * 1024
            elif name == "VmFlags:":
                usual = _USUAL.issuperset(line.split()[1:])
                size = end - first
                # What is not present would be after it was copied.
                if (
                    anonymous
                    and usual
                    and size >= _LEAST
                    and present >= size * 3 // 4
                    and not first <= mine < end
                ):
                    yield first, size
