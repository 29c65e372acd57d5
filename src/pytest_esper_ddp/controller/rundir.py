"""The session's own directory. It goes however the session ends, as does whatever its ranks have started."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pytest_esper_ddp.errors import HarnessError

_PREFIX = "pytest-ddp."
_ROOM = 16 << 20  # bytes: ledgers of 32 ranks, and something for the tests
# Outlives pytest by a moment: its input ends with it, be it by SIGKILL. Ranks have their parent's death for
# a signal; processes that tests have started do not. What forks pytest's own process, as a test's pool of
# workers does, lets go of that input, or it would not end.
_GUARD = """
trap '' INT TERM HUP QUIT
groups=' '
while read -r what group; do
    case $what in
    +) groups="$groups-$group " ;;
    *) groups="${groups%% -$group *} ${groups#* -$group }" ;;
    esac
done
[ "$groups" = ' ' ] || kill -s KILL -- $groups
rm -rf -- "$1"
"""


class RunDirectory:
    """Made in memory where there is room, held by a lock as long as this process lives."""

    def __init__(self, parents: Iterable[Path] = ()) -> None:
        """Raises HarnessError with what each of the parents was refused for."""
        reasons = []
        for parent in parents or _parents():
            try:
                if shutil.disk_usage(parent).free < _ROOM:
                    raise OSError(f"less than {_ROOM >> 20} MiB are free")
                self.path, self._lock = _make(parent)
                break
            except OSError as error:
                reasons.append(f"{parent}: {error.strerror or error}")
        else:
            raise HarnessError(f"no directory for the ranks' records can be made ({'; '.join(reasons)})")
        self._input, theirs = socket.socketpair()
        with theirs:
            self._guard = _guard(self.path, theirs)
        mine = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(mine()))

    def watch(self, pids: Iterable[int]) -> None:
        """Should this process be killed, the process groups of these ranks end with it."""
        self._tell("+", pids)

    def forget(self, pids: Iterable[int]) -> None:
        """These are gone: their numbers may be given to others."""
        self._tell("-", pids)

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        with suppress(OSError):  # as below
            self._input.shutdown(socket.SHUT_RDWR)  # for whoever has a copy, too
        self._input.close()
        if self._guard is not None:
            self._guard.wait()

    def let_go(self) -> None:
        """In a process that was forked from the session's: keep nothing of it open."""
        self._input.close()

    def _tell(self, what: str, pids: Iterable[int]) -> None:
        with suppress(OSError):  # somebody has ended it, and only it
            self._input.sendall("".join(f"{what} {pid}\n" for pid in pids).encode(), socket.MSG_NOSIGNAL)


def _parents() -> Iterable[Path]:
    yield Path("/dev/shm")
    yield Path(tempfile.gettempdir())


def _make(parent: Path) -> tuple[Path, int]:
    _sweep(parent)
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}.", dir=parent))
        # Between these two lines another session may have taken it for one that was left behind.
        with suppress(FileNotFoundError):
            lock = _locked(path)
            if lock is not None:
                if path.exists():
                    return path, lock
                os.close(lock)


def _sweep(parent: Path) -> None:
    """Remove what sessions left behind that were killed together with their guard. A process number would not
    tell them from those that live: it may have been given anew, or in another container.
    """
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_uid == os.getuid() and (lock := _locked(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the directory's lock; None where somebody else does."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _let_go(directory: RunDirectory | None) -> None:
    if directory is not None:
        directory.let_go()


def _guard(path: Path, told: socket.socket) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(path)],
            stdin=told.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the processes of the terminal
        )
    except OSError:
        return None  # then only ranks end with this process, and the next session sweeps
