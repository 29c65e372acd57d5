"""What every session needs to know of tests on ranks, also one without any: it must cost next to nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DECLARATIONS = (
    "ddp(world_size=None, *, backend=None, timeout=None, isolation=None, init=True, lockstep='enforce', "
    "patience=2.0): run this test on that many ranks, each a real process",
    "ddp_fault(kind, *, rank, nth=None, op=None, tag=None, epoch=None, step=None, slot=None, target=None, "
    "**arguments): inject one fault; may be repeated",
    "ddp_expect(kind, *, guilty=None, op=None, tag=None, field=None, raises=None, within=None): "
    "the test passes only if this outcome comes",
)
# The attribute of a report that has the row of the summary's table. xdist and the report log hand it on: in a
# worker there is no summary to write a row into.
ROW = "ddp_row"
_MENTIONS_DDP = re.compile(rb"\bddp\b")


def is_ddp(item: pytest.Item) -> bool:
    """Whether the item runs on ranks."""
    return item.get_closest_marker("ddp") is not None


def leaves_size_open(item: pytest.Item) -> bool:
    """Whether the item runs on ranks and its marker names no world size."""
    marker = item.get_closest_marker("ddp")
    return marker is not None and (*marker.args, marker.kwargs.get("world_size"))[0] is None


def mentions_ddp(path: Path) -> bytes | None:
    """The source of a Python file that may hold tests on ranks; None for any other."""
    if path.suffix != ".py":
        return None
    try:
        source = path.read_bytes()
    except OSError:
        return None
    return source if _MENTIONS_DDP.search(source) else None
