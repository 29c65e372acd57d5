"""Where the answer to a rank's question lies: a file beside its ledger, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def read_answer(run_dir: Path, rank: int, number: int) -> str | None:
    """The answer to the question that is record `number` of this rank; None while there is none."""
    try:
        return _path(run_dir, rank, number).read_text()
    except FileNotFoundError:
        return None


def write_answer(run_dir: Path, rank: int, number: int, text: str) -> None:
    """Answer it, once."""
    path = _path(run_dir, rank, number)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _path(run_dir: Path, rank: int, number: int) -> Path:
    return run_dir / f"rank{rank}.{number}.answer"
