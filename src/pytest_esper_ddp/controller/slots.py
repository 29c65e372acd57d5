"""How many ranks run tests at one time on this machine: file locks that every session of a user takes."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.lockstep.run.process import parent

_NAME = "pytest-ddp-slots"
# Pooled tests take 2 ms: who waits looks often at first. Seconds.
_FIRST_LOOK, _LAST_LOOK = 0.0005, 0.01
_TOLD_AFTER, _TOLD_AGAIN = 5.0, 60.0


class Slots:
    """A budget of ranks, shared with all sessions of this user by locks that end with their holder.

    A slot is taken for a rank while a test runs on it. Ranks that wait for their next test have none: they
    use no processor, and a worker of xdist that has nothing to do for now could not be asked for them.
    """

    def __init__(
        self,
        budget: int,
        tell: Callable[[str], None],
        *,
        folders: Collection[Path] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.budget = budget
        self._tell, self._clock, self._sleep = tell, clock, sleep
        self._folder = _own_folder(folders or (Path("/dev/shm"), Path(tempfile.gettempdir())))
        if self._folder is None:
            tell("no folder for locks can be made here: ranks of other sessions are not waited for")
        self._files: dict[str, int] = {}
        self._held: list[int] = []

    @contextmanager
    def take(self, ranks: int, whose: str) -> Iterator[None]:
        """Hold a slot for each rank, or the whole budget where that is less; waits until they are free."""
        try:
            if self._folder is not None:
                self._acquire(min(ranks, self.budget), whose)
            yield
        finally:
            self._release()

    def close(self) -> None:
        """Close the files; whatever is held is free then."""
        self._held.clear()
        while self._files:
            os.close(self._files.popitem()[1])

    def _acquire(self, wanted: int, whose: str) -> None:
        # Only who has the turn collects slots, or two could each hold half of what both need. It also comes
        # before a holder whose next test follows at once.
        turn = self._file("turn")
        try:
            if not (_lock(turn) and self._collect(wanted)):
                self._wait(turn, wanted, whose)
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def _wait(self, turn: int, wanted: int, whose: str) -> None:
        if _ancestors() & self._holders():
            return  # a session in a test's body: that test's slots are for it, too
        began = self._clock()
        pause, tell_at = _FIRST_LOOK, began + _TOLD_AFTER
        while not (_lock(turn) and self._collect(wanted)):
            now = self._clock()
            if now >= tell_at:
                holders = ", ".join(map(str, sorted(self._holders()))) or "nobody any more"
                self._tell(
                    f"waiting for {now - began:.0f} s for {wanted} of {self.budget} rank slots "
                    f"to run {whose}; held by process {holders}"
                )
                tell_at = now + _TOLD_AGAIN
            self._sleep(pause)
            pause = min(_LAST_LOOK, 1.5 * pause)

    def _collect(self, wanted: int) -> bool:
        """Take what is free, up to what is wanted; whether that is all of it."""
        for number in range(self.budget):
            if len(self._held) == wanted:
                break
            slot = self._file(str(number))
            if slot not in self._held and _lock(slot):
                os.pwrite(slot, f"{os.getpid():<10}".encode(), 0)
                self._held.append(slot)
        return len(self._held) == wanted

    def _holders(self) -> set[int]:
        """Process ids that hold slots of this budget, as far as they have said so."""
        holders = set()
        for number in range(self.budget):
            slot = self._file(str(number))
            if slot in self._held:
                continue
            if _lock(slot):
                fcntl.flock(slot, fcntl.LOCK_UN)
            elif text := os.pread(slot, 10, 0).strip():
                holders.add(int(text))
        return holders

    def _release(self) -> None:
        while self._held:
            fcntl.flock(self._held.pop(), fcntl.LOCK_UN)

    def _file(self, name: str) -> int:
        if name not in self._files:
            assert self._folder is not None
            self._files[name] = os.open(
                self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        return self._files[name]


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def _lock(file: int) -> bool:
    """Take the lock unless somebody else has it; it is no error to have it already."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _own_folder(parents: Collection[Path]) -> Path | None:
    """A folder that only this user can enter, the same for all sessions; None where none can be made."""
    for place in parents:
        folder = place / f"{_NAME}.{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            seen = folder.lstat()
        except OSError:
            continue
        # Anybody may have made a folder of that name first.
        if stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077:
            return folder
    return None


def _ancestors() -> set[int]:
    found, pid = set[int](), parent(os.getpid())
    while pid:
        found.add(pid)
        pid = parent(pid)
    return found
