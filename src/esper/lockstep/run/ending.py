"""Nothing of a run is left: how its processes end and its ledgers go, also when its launcher is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from esper.lockstep.errors import StartError

# Seconds from SIGTERM to SIGKILL. A rank that waits in C++ runs no handler of Python's, however long it has.
_SOFT_END = 0.05
_ALL_IS_WELL = b"."


@contextmanager
def run_directory() -> Iterator[Path]:
    """A private directory for the ledgers, in memory where there is /dev/shm; removed afterwards."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        path = Path(tempfile.mkdtemp(prefix="lockstep.", dir=base))
    except OSError as error:
        raise StartError(f"a folder for the ledgers in {base}", error.strerror or str(error)) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def keeper(run_dir: Path) -> Iterator[Callable[[int], None]]:
    """A child that sees this process killed, by the end of a pipe: it ends the process groups that it was
    told of, and removes the ledgers.

    The ranks die by themselves then, but not the children that they have.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        _keep(reading, run_dir)

    def tell(text: bytes) -> None:
        with suppress(OSError):  # killed itself: then there is nobody to tell
            os.write(writing, text)

    os.close(reading)
    try:
        yield lambda group: tell(b"%d\n" % group)
        tell(_ALL_IS_WELL)
    finally:
        os.close(writing)
        with suppress(ChildProcessError):  # reaped by the kernel where SIGCHLD is ignored
            os.waitpid(child, 0)


def _keep(reading: int, run_dir: Path) -> NoReturn:
    try:
        os.setsid()  # no Ctrl-C, and no signal to its parent's group, is for it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(reading, 0)
        # Who waits for the end of our output must not wait for it.
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        told = b""
        while part := os.read(0, 1 << 16):
            told += part
        if not told.endswith(_ALL_IS_WELL):
            for group in told.split():
                _signal_group(int(group), signal.SIGKILL)
            shutil.rmtree(run_dir, ignore_errors=True)
    finally:
        os._exit(0)


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGCONT, SIGTERM, a moment, SIGKILL to each rank's process group, and reap."""
    for process in processes:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGCONT)
            _signal_group(process.pid, signal.SIGTERM)
    end = time.monotonic() + _SOFT_END
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        # The group may hold children of a rank that has itself ended.
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
