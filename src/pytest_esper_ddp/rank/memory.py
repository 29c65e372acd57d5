"""The memory of the process that ranks are forked from, laid out so that each of them copies less of it.

A page that a rank writes to is copied for it, 3 to 4 us, and in CPython that is each page with an object that
it so much as looks at: 2,700 for one test.
"""

from __future__ import annotations

import gc
import mmap
import sys
from collections.abc import Iterator
from functools import partial

PAGE = mmap.PAGESIZE
_SMALL = 512  # bytes: the largest object that the interpreter's own allocator takes
_filled: list[object] = []


def settle() -> None:
    """When everything is loaded: leave as little as can be that ranks would write to."""
    gc.collect()
    if sys.version_info < (3, 12):  # since when such names are never counted
        # It holds the names of attributes: a rank that looks others up lets go of each that it finds there.
        sys._clear_type_cache()
    _fill_holes()
    gc.freeze()  # else each rank's first collection copies every page: 137 ms with dynamo loaded


def _fill_holes() -> None:
    """Take the blocks that are free between others, so that ranks begin pages of their own.

    What the interpreter allocates comes from a pool of its size, 16 to 512 bytes, that has room. After all
    those imports that is anywhere, a few blocks in each.
    """
    makers = {16: object, 32: complex} | {
        size: partial(bytes, size - 33) for size in range(48, _SMALL + 1, 16)
    }
    for size, make in makers.items():
        in_a_row, last = 0, 0
        while in_a_row < PAGE // size:
            _filled.append(block := make())
            in_a_row = in_a_row + 1 if id(block) == last + size else 0
            last = id(block)


def own_memory() -> Iterator[tuple[int, int]]:
    """First address and end of each part whose pages a process has its own of once it writes to them, but for
    the stack.
    """
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            where, access, _, _, _, *name = line.split(maxsplit=5)
            if access == "rw-p" and not (name and name[0].startswith("[stack]")):
                first, _, end = where.partition("-")
                yield int(first, 16), int(end, 16)
