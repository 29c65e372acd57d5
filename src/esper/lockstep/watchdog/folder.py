"""Where a watched run keeps its ledgers: one folder of its own, for its owner's eyes alone."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from esper.lockstep.errors import StartError

_PREFIX = "lockstep."


def make_folder(run_dir: Path | None, token: str, restart: int) -> Path:
    """The folder of the run, made by whichever rank comes first: in `run_dir`, or in memory where there is
    /dev/shm. Raises StartError where it can't be had, or is another user's.
    """
    if run_dir is None:
        base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
        path = base / f"{_PREFIX}{token[:16]}"
    else:
        path = run_dir.absolute() / f"attempt-{restart}-{token[:8]}"
    what = (
        f"run_dir {str(run_dir)!r}" if run_dir is not None else f"a folder for the ledgers in {path.parent}"
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise StartError(what, error.strerror or str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StartError(what, f"{path} is open to others, or not this user's")
    return path


def remove_folder(path: Path) -> None:
    """Leave nothing of a run that had no verdict."""
    shutil.rmtree(path, ignore_errors=True)


def remove_own(path: Path, rank: int) -> None:
    """Leave nothing of a rank that could not begin."""
    with suppress(OSError):  # not empty: the others have
        for file in path.glob(f"rank{rank}.*"):
            file.unlink()
        path.rmdir()


class Word(StrEnum):
    """What a rank's watchdog tells the others of its host by a file."""

    KNOWS = "knows"  # the verdict
    STOPPED = "stopped"  # its program goes on, and nobody records it
    LEFT = "left"  # it watches no more, and needs nothing here


def tell(folder: Path, rank: int, word: Word) -> None:
    """Leave word for the others; without room they will see it by other means."""
    with suppress(OSError):
        (folder / f"rank{rank}.{word}").touch(mode=0o600)


def told(folder: Path, rank: int, word: Word) -> bool:
    """Whether a rank has left this word."""
    return (folder / f"rank{rank}.{word}").exists()
