"""Where a watched run keeps its ledgers: one folder of its own, for its owner's eyes alone."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from esper.lockstep.errors import StartError
from esper.lockstep.report.verdict import NAME as VERDICT

_PREFIX, _DIGITS = "lockstep.", 16
_HELD = "held"
# Folders with a verdict that stay in memory when the next run begins: those of a program that is mended over
# and over would fill it, at some 3.5 MB for four ranks.
VERDICTS_KEPT = 5
# Bytes of a verdict and a rank's stacks: some ten kilobytes each, and a row for each rank.
_EVIDENCE, _ROW = 1 << 16, 1 << 8
# To remove a folder takes milliseconds; whoever sweeps may be kept from a processor meanwhile.
_SWEPT_WITHIN, _BETWEEN_TRIES = 2.0, 0.005


def make_folder(run_dir: Path | None, token: str, restart: int) -> Path:
    """The folder of the run, made by whichever rank comes first: in `run_dir`, or in memory where there is
    /dev/shm. Raises StartError where it can't be had, or is another user's.
    """
    if run_dir is None:
        base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
        path = base / f"{_PREFIX}{token[:_DIGITS]}"
    else:
        path = run_dir.absolute() / f"attempt-{restart}-{token[:8]}"
    what = (
        f"run_dir {str(run_dir)!r}" if run_dir is not None else f"a folder for the ledgers in {path.parent}"
    )
    if run_dir is None:
        sweep(path.parent)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise StartError(what, error.strerror or str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StartError(what, f"{path} is open to others, or not this user's")
    return path


def hold_folder(run_dir: Path | None, token: str, restart: int) -> tuple[Path, int]:
    """The folder of the run, and the number of a file that keeps it from being swept for as long as this
    process has it open. Raises StartError where it can't be had.
    """
    end = time.monotonic() + _SWEPT_WITHIN
    while True:
        path = make_folder(run_dir, token, restart)
        try:
            return path, hold(path)
        except (BlockingIOError, FileNotFoundError) as error:  # another's start sweeps
            if time.monotonic() > end:
                reason = f"for {_SWEPT_WITHIN:g} s another process has been sweeping it away"
                raise StartError(str(path), reason) from error
            time.sleep(_BETWEEN_TRIES)
        except OSError as error:
            with suppress(OSError):  # somebody else is in it
                path.rmdir()
            raise StartError(str(path), f"it can't be held ({error.strerror or error})") from error


def hold(path: Path) -> int:
    """What `hold_folder` does of a folder that there is. Raises FileNotFoundError where it was swept just
    now, BlockingIOError where it is being swept, OSError where it can't be held.
    """
    file = os.open(path / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(file, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(file), (path / _HELD).stat()):
            raise FileNotFoundError(errno.ENOENT, "swept away", str(path))
    except OSError:
        os.close(file)
        raise
    return file


def reserve(path: Path, rank: int, world_size: int) -> None:
    """Keep room for this rank's part of the evidence, or the others could not be told of a verdict once the
    disk is full. Raises StartError where there is none now.
    """
    size = _EVIDENCE + _ROW * world_size
    try:
        file = os.open(_reserved(path, rank), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)
    except OSError as error:
        raise StartError(str(path), f"{error.strerror or error}; it needs {size} bytes there") from error


def release(path: Path, rank: int) -> None:
    """Give that room back: what is written next finds it."""
    with suppress(OSError):
        _reserved(path, rank).unlink()


def _reserved(path: Path, rank: int) -> Path:
    return path / f"rank{rank}.reserved"


def sweep(base: Path) -> None:
    """Remove what this user's runs have left that nobody holds any more, since it lies in memory: of runs
    without a verdict, whose ranks were all killed, and of all but the last few that had one.
    """
    judged = []
    for path in base.glob(f"{_PREFIX}{'[0-9a-f]' * _DIGITS}"):
        with suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue
            if (at := _judged_at(path)) is None:
                _remove_unless_held(path)
            else:
                judged.append((at, path))
    for _, path in sorted(judged, reverse=True)[VERDICTS_KEPT:]:
        with suppress(OSError):
            _remove_unless_held(path)


def remove_if_left(path: Path) -> None:
    """Leave nothing of a run that had no verdict. Raises OSError where somebody holds it, or nobody ever
    did.
    """
    if _judged_at(path) is None:
        _remove_unless_held(path)


def _judged_at(path: Path) -> float | None:
    try:
        return (path / VERDICT).stat().st_mtime
    except FileNotFoundError:
        return None


def _remove_unless_held(path: Path) -> None:
    file = os.open(path / _HELD, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(file, fcntl.LOCK_EX)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(file)


def _lock(file: int, kind: int) -> None:
    """Raises BlockingIOError where another process has a lock that does not go with it.

    A lock of the process, as POSIX has them, and not of the open file: of that, a child that was forked a
    moment ago has a share, and keeps the last rank from removing the folder if it has not run yet.
    """
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except PermissionError as error:  # as some systems say it
        raise BlockingIOError(*error.args) from error


def remove_own(path: Path, rank: int) -> None:
    """Leave nothing of a rank that could not begin."""
    with suppress(OSError):  # the others hold it, or have left something
        for file in path.glob(f"rank{rank}.*"):
            file.unlink()
        names = {one.name for one in path.iterdir()}
        if not names:
            path.rmdir()
        elif names == {_HELD}:
            remove_if_left(path)


class Word(StrEnum):
    """What a rank's watchdog tells the others of its host by a file."""

    SEES = "sees"  # the verdict
    KNOWS = "knows"  # and its program is about to, or does
    SAID = "said"  # it has, or its program goes on with it
    APART = "apart"  # it has let go of the others: nothing of theirs completes here any more
    STOPPED = "stopped"  # its program goes on, and nobody records it
    LEAVES = "leaves"  # it watches no more


def tell(folder: Path, rank: int, word: Word) -> None:
    """Leave word for the others; without room they will see it by other means."""
    with suppress(OSError):
        (folder / f"rank{rank}.{word}").touch(mode=0o600)


def told(folder: Path, rank: int, word: Word) -> bool:
    """Whether a rank has left this word."""
    return (folder / f"rank{rank}.{word}").exists()
