"""What a rank that a fatal signal has ended wrote at the last moment: where each of its threads was."""

from __future__ import annotations

import os
import re
from pathlib import Path

import _pytest

from esper.lockstep.rank.stacks import stack_path

_BEGIN = "Fatal Python error: "
_FILE = re.compile(r'  File "(.*?)", line ')
_THREAD = re.compile(r"(Current thread|Thread) 0x")
_PYTEST = os.path.dirname(_pytest.__file__) + os.sep


def stacks_at_the_end(run_dir: Path, rank: int) -> list[tuple[str, str]]:
    """A section for a report; none where no such signal came. Innermost frames are first, as Python writes
    them, and those from pytest's own on left out.
    """
    try:
        text = stack_path(run_dir, rank).read_text(errors="replace")
    except OSError:
        return []
    at = text.rfind(_BEGIN)
    if at < 0:
        return []
    kept, outside = [], False
    for line in text[at:].splitlines():
        if line.startswith("Extension modules:"):
            break
        file = _FILE.match(line)
        if file is None or _THREAD.match(line):
            outside = False
        elif file[1].startswith(_PYTEST):
            outside = True
        if not outside:
            kept.append(line)
    return [("Stacks at the end", "\n".join(kept).rstrip() + "\n")]
