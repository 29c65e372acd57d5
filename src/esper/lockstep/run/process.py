"""How a process is, from /proc: nothing here waits or signals."""

from __future__ import annotations

import os
import time

_PF_EXITING = 0x4


def state(pid: int) -> str:
    """The kernel's letter: R running, S asleep, D in I/O, T stopped, Z or X gone."""
    fields = _stat(f"/proc/{pid}/stat")
    return fields[0] if fields else "X"


def ending(pid: int) -> bool:
    """Whether the process is about to be reaped. The kernel says so before it closes its connections, so
    before any peer can notice.
    """
    return state_and_ending(pid)[1]


def state_and_ending(pid: int) -> tuple[str, bool]:
    """What `state` and `ending` say, of one look."""
    fields = _stat(f"/proc/{pid}/stat")
    if not fields:
        return "X", True
    return fields[0], fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


def parent(pid: int) -> int | None:
    """The process id of its parent; None when it is gone."""
    fields = _stat(f"/proc/{pid}/stat")
    return int(fields[1]) if fields else None


def started(pid: int) -> int | None:
    """When the process began, in clock ticks since the machine did: another of its number began later. None
    when it is gone.
    """
    fields = _stat(f"/proc/{pid}/stat")
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def group(pid: int) -> int | None:
    """The process group that it is in; None when it is gone."""
    fields = _stat(f"/proc/{pid}/stat")
    return int(fields[2]) if fields else None


def wait_status(pid: int) -> int | None:
    """Of one that has ended and was not reaped: what its parent's wait will be told; None when it is gone."""
    fields = _stat(f"/proc/{pid}/stat")
    return int(fields[-1]) if fields else None


def processor_ticks(pid: int, thread: int) -> tuple[str, int] | None:
    """(state letter, clock ticks used so far) of one thread; None when it is gone."""
    fields = _stat(f"/proc/{pid}/task/{thread}/stat")
    return (fields[0], int(fields[11]) + int(fields[12])) if fields else None


def context_switches(pid: int, thread: int) -> int | None:
    """How often the thread was given a processor: unlike ticks of 10 ms, this shows the shortest run."""
    try:
        text = _read(f"/proc/{pid}/task/{thread}/status")
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)


def kept_waiting(pid: int) -> float:
    """Seconds in all that the process's main thread was ready to run and had no processor."""
    try:
        return int(_read(f"/proc/{pid}/schedstat").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # gone, or a kernel that does not count it
        return 0.0


def _stat(path: str) -> list[str]:
    try:
        # The command's name is in parentheses and may itself contain spaces and parentheses.
        return _read(path).rpartition(")")[2].split()
    except OSError:
        return []


def _read(path: str) -> str:
    # Every look reads one for each rank: a file object costs twice as much as the kernel's part.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 1 << 14).decode(errors="replace")
    finally:
        os.close(file)


class SleepWatch:
    """Tells a thread that has slept without a break from one that only sleeps at this moment."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: for how long a thread must not have run to count as asleep."""
        self._seconds = seconds
        self._seen: dict[tuple[int, int], tuple[int, float]] = {}

    def asleep(self, pid: int, thread: int) -> bool:
        """Whether the thread has slept since the first look of an unbroken series at least `seconds` ago."""
        ticks, switches, now = processor_ticks(pid, thread), context_switches(pid, thread), time.monotonic()
        key = (pid, thread)
        if ticks is None or switches is None or ticks[0] != "S":
            self._seen.pop(key, None)
            return False
        before = self._seen.get(key)
        if before is None or before[0] != switches:
            self._seen[key] = (switches, now)
            return False
        return now - before[1] >= self._seconds
