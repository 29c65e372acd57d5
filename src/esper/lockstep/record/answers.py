"""Where the answer to a rank's question lies: a file beside its ledger, whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def read_answer(run_dir: Path, rank: int, number: int) -> str | None:
    """The answer to the question that is record `number` of this rank; None while there is none."""
    try:
        return _path(run_dir, rank, number).read_text()
    except FileNotFoundError:
        return None


def write_answer(run_dir: Path, rank: int, number: int, text: str) -> None:
    """Answer it, once; not at all on a full disk, where the rank goes on without."""
    path = _path(run_dir, rank, number)
    unfinished = path.with_suffix(".unfinished")
    with suppress(OSError):
        unfinished.write_text(text)
        os.replace(unfinished, path)


def _path(run_dir: Path, rank: int, number: int) -> Path:
    return run_dir / f"rank{rank}.{number}.answer"
