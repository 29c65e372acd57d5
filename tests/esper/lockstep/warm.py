"""Runs of `python -m esper.lockstep run` whose processes need not load torch first.

Each interpreter that does takes 2 s of a processor, and a run of two ranks has three: more than all else in
it. Here launcher and ranks are forked from one process that has loaded it, and run their own `__main__`, with
files, signals, environment and end as of an interpreter of their own. How a rank is started is passed by:
that is for the tests that run the command itself.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn, cast
from unittest.mock import patch

from esper.lockstep.rank.lineage import die_with_parent
from esper.lockstep.rank.stacks import STACK_SIGNAL
from pytest_esper_ddp.wire.channel import Closed, receive, send
from tests.esper.lockstep.late import evidence

# By it all processes of a run are found again: it has another value in each.
MARK = "ESPER_LOCKSTEP_TEST"
_UNMARKED = "0" * 32
_ROOT = Path(__file__).resolve().parents[3]
_LOADED = (
    "torch._dynamo",  # which DDP, optimizers and functional collectives import at their first use
    "torch.distributed",
    "torch.nn.parallel",
    "esper.lockstep.cli",
    "esper.lockstep.run.launch",
    "esper.lockstep.rank.hooks",
    "esper.lockstep.rank.intercept",
    "esper.lockstep.rank.joining",
)
_AS_MAIN = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


@dataclass(frozen=True)
class _Start:
    """What a launcher begins with."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str


def warm_run(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """`python -m esper.lockstep run ARGUMENTS...`; `environment` has a mark of 32 letters.

    Raises subprocess.TimeoutExpired, and ends the run, when it takes longer than `timeout` seconds. A note of
    it says what its processes were doing.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        channel = _zygote()
        socket.send_fds(channel, [b"r"], [out.fileno(), err.fileno()])
        send(channel, _Start(arguments, environment, os.getcwd()))
        pid = receive(channel)
        doing = ""
        if late := not select.select([channel], [], [], timeout)[0]:
            doing = evidence(f"{MARK}={environment[MARK]}")
            os.kill(pid, signal.SIGKILL)
        status = receive(channel)
        out.seek(0)
        err.seek(0)
        if late:
            error = subprocess.TimeoutExpired(arguments, timeout)
            error.add_note("\n".join([doing, "-- stdout", out.read(), "-- stderr", err.read()]))
            raise error
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


@cache
def _zygote() -> socket.socket:
    """A connection to the process that this one has runs forked from; it ends with this one."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        cwd=_ROOT,
        env={**os.environ, MARK: _UNMARKED, "OMP_NUM_THREADS": "1"},
    )
    theirs.close()

    def end() -> None:
        ours.shutdown(socket.SHUT_RDWR)  # what a test has forked may have a copy
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def main() -> None:
    """Fork a launcher for each request, one after the other, until nobody is there to ask."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    for name in _LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection of each process would copy every page
    me = os.getpid()
    while True:
        data, files, _, _ = socket.recv_fds(channel, 1, 2)
        if not data:
            return
        start: _Start = receive(channel)
        if (pid := os.fork()) == 0:
            die_with_parent(me)
            _be_launcher(start, files)
        for file in files:
            os.close(file)
        try:
            send(channel, pid)
            send(channel, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        except Closed:
            return


def _be_launcher(start: _Start, files: Sequence[int]) -> NoReturn:
    from esper.lockstep.run import launch

    try:
        _write_mark(start.environment[MARK])
        for number, file in enumerate(files, 1):
            os.dup2(file, number)
        os.chdir(start.folder)
        _be_alone(start.environment)
        faulthandler.register(STACK_SIGNAL, 2, all_threads=True)
        sys.argv = ["-m", "run", *start.arguments]
        with patch.object(launch, "_start", _fork_rank):
            runpy.run_module("esper.lockstep", run_name="__main__", alter_sys=True)  # leaves by os._exit
    except BaseException:  # noqa: BLE001  nothing above is the launcher's
        traceback.print_exc()
    os._exit(70)


def _fork_rank(
    command: Sequence[str], run_dir: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """In the launcher: what `launch._start` does there."""
    if (pid := os.fork()) == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _be_alone(environment)
        sys.argv = ["-m", str(run_dir), *command]
        # Does what the interpreter does with a SystemExit and before it ends; the frames below are nobody's.
        ctypes.pythonapi.PyRun_SimpleString(_AS_MAIN.format("esper.lockstep.rank").encode())
        ctypes.pythonapi.Py_Exit(1)
    os.setpgid(pid, pid)
    return cast("subprocess.Popen[bytes]", _Child(pid))


def _be_alone(environment: Mapping[str, str]) -> None:
    """Have no file but the standard ones, and this environment."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(environment)


def _write_mark(value: str) -> None:
    """Where /proc/PID/environ shows it, as it does of a process that was started with it."""
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_void_p
    place = library.getenv(MARK.encode())
    assert len(value) == len(_UNMARKED)
    assert ctypes.string_at(place) == _UNMARKED.encode()
    ctypes.memmove(place, value.encode(), len(value))


class _Child:
    """As much of subprocess.Popen as a launcher asks of a rank."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        if timeout is None:
            return self._reap(0)
        end = time.monotonic() + timeout
        while self._reap(os.WNOHANG) is None:
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.0005)
        return self.returncode

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


if __name__ == "__main__":
    main()
