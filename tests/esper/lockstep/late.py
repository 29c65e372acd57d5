"""What a run that does not end was doing: taken before it is ended, told with its error, its files kept."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from esper.lockstep.rank.stacks import STACK_SIGNAL

_ANSWER_WITHIN = 1.0
_TOLD = 6000  # letters of each file


def marked_processes(variable: str) -> list[int]:
    """Living processes in whose environment `variable`, NAME=VALUE, is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return sorted(found)


def evidence(variable: str) -> str:
    """State and stacks of all processes with that mark, and where their ledgers have been copied to."""
    processes, folders, told = marked_processes(variable), set[Path](), list[str]()
    for pid in processes:
        folders |= _folders_of(pid)
        told += [f"-- process {pid}", *_threads_of(pid)]
    stacks = {path: path.stat().st_size for folder in folders for path in folder.glob("*.stacks")}
    for pid in processes:
        if _answers(pid):
            os.kill(pid, STACK_SIGNAL)
    until = time.monotonic() + _ANSWER_WITHIN
    while any(path.stat().st_size == size for path, size in stacks.items()) and time.monotonic() < until:
        time.sleep(0.01)
    for folder in sorted(folders):
        kept = Path(tempfile.mkdtemp(prefix="late."))
        told.append(f"-- {folder}, kept as {kept}")
        for path in sorted(folder.iterdir()):
            with suppress(OSError):  # no plain file
                shutil.copy(path, kept)
                if path.suffix == ".stacks":
                    told += [f"-- {path.name}", path.read_text()[-_TOLD:]]
    return "\n".join(told)


def _folders_of(pid: int) -> set[Path]:
    """Of what it has open that is named as stacks are."""
    found = set[Path]()
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                path = Path(os.readlink(link))
                if path.suffix == ".stacks" and path.parent.is_dir():
                    found.add(path.parent)
    return found


def _threads_of(pid: int) -> list[str]:
    found = []
    with suppress(OSError):
        for thread in sorted(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(OSError):
                state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
                name, waits = (thread / "comm").read_text().strip(), (thread / "wchan").read_text()
                found.append(f"   {thread.name} {name}: {state}, in {waits}")
    return found


def _answers(pid: int) -> bool:
    """Whether it does something at the signal: whose default is to be ignored."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (STACK_SIGNAL - signal.SIGHUP) & 1)
    return False
