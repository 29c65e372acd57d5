"""Programs of Python whose processes need not load torch first.

Each interpreter that does takes 2 s of a processor, which for most programs that a test runs is more than all
else in them, and most have several. Here they are forked from one process that has loaded it, and have
arguments, files, signals, environment, folder and end as of an interpreter of their own. How one starts is
passed by: that is for the tests that start one.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from esper.lockstep.rank.lineage import die_with_parent

# By its value, 32 letters, all processes of one program are found again.
MARK = "ESPER_TEST_TOKEN"
_UNMARKED = "0" * 32
_START, _REAP = b"s", b"r"
_ROOT = Path(__file__).resolve().parents[1]
_AS_MAIN = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


@dataclass(frozen=True)
class Program:
    """What the forked process begins with, and the function that is to be it."""

    body: Callable[[Sequence[str]], NoReturn]
    arguments: Sequence[str]
    environment: Mapping[str, str]  # with MARK
    folder: str


class Forkserver:
    """The process that programs are forked from; it ends with this one."""

    def __init__(self, modules: Sequence[str]) -> None:
        """`modules` are loaded before the first."""
        self._socket, theirs = socket.socketpair()
        self._channel = Connection(os.dup(self._socket.fileno()))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid()), *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=_ROOT,
                env={**os.environ, MARK: _UNMARKED, "OMP_NUM_THREADS": "1"},
            )
        atexit.register(self._end)

    def start(self, program: Program, out: int, err: int, *given: int) -> Started:
        """A program with these files; `given` is its standard input, if that is not to be empty."""
        socket.send_fds(self._socket, [_START], [out, err, *given])
        self._channel.send(program)
        return Started(self, self._channel.recv())

    def status_of(self, pid: int) -> int:
        """How a program that is over has ended, as subprocess has it: to be asked once."""
        self._socket.send(_REAP)
        self._channel.send(pid)
        status: int = self._channel.recv()
        return status

    def _end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # what a test has forked may have a copy
        self._process.wait()


class Started:
    """A program under way, or over: as much of subprocess.Popen as tests ask of it."""

    def __init__(self, server: Forkserver, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._over = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """How it has ended; None where it goes on."""
        return self._look(0.0)

    def wait(self, timeout: float) -> int:
        """How it ends. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status

    def send_signal(self, number: int) -> None:
        """To it alone, unless it is over."""
        if self.poll() is None:  # until it is reaped nobody else has its number
            os.kill(self.pid, number)

    def _look(self, within: float) -> int | None:
        if self.returncode is None and select.select([self._over], [], [], within)[0]:
            self.returncode = self._server.status_of(self.pid)
            os.close(self._over)
        return self.returncode


@cache
def forkserver(*modules: str) -> Forkserver:
    """One for all tests of this process."""
    return Forkserver(modules)


def main() -> None:
    """Fork a process for each program, until nobody is there to ask."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    channel = Connection(os.dup(asked.fileno()))
    die_with_parent(int(sys.argv[2]))
    for name in sys.argv[3:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection of each process would copy every page
    me = os.getpid()
    while True:
        data, files, _, _ = socket.recv_fds(asked, 1, 3)
        if not data:
            return
        if data == _REAP:
            channel.send(os.waitstatus_to_exitcode(os.waitpid(channel.recv(), 0)[1]))
            continue
        program: Program = channel.recv()
        if (pid := os.fork()) == 0:
            die_with_parent(me)
            _be(program, files)
        for file in files:
            os.close(file)
        with suppress(OSError):  # nobody is there any more, as is said at the next look
            channel.send(pid)


def _be(program: Program, files: Sequence[int]) -> NoReturn:
    try:
        _write_mark(program.environment[MARK])
        for number, file in zip((1, 2, 0), files, strict=False):
            os.dup2(file, number)
        os.chdir(program.folder)
        be_alone(program.environment)
        program.body(program.arguments)
    except BaseException:  # noqa: BLE001  nothing above is the program's
        traceback.print_exc()
    os._exit(70)


def be_alone(environment: Mapping[str, str], *kept: int) -> None:
    """Have this environment, and no file but the standard ones and those `kept`."""
    begin = 3
    for file in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(begin, file)
        begin = file + 1
    os.environ.clear()
    os.environ.update(environment)


def own_signals() -> None:
    """Have no handler but Python's own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run_module(name: str, arguments: Sequence[str]) -> NoReturn:
    """Do what `python -m NAME ARGUMENTS...` does, and end as it does."""
    sys.argv = ["-m", *arguments]
    sys.orig_argv = [sys.executable, "-m", name, *arguments]
    # Does what the interpreter does with a SystemExit and before it ends; the frames below are nobody's.
    failed = ctypes.pythonapi.PyRun_SimpleString(_AS_MAIN.format(name).encode())
    ctypes.pythonapi.Py_Exit(1 if failed else 0)
    raise AssertionError("unreachable")


def _write_mark(value: str) -> None:
    """Where /proc/PID/environ shows it, as it does of a process that was started with it."""
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_void_p
    place = library.getenv(MARK.encode())
    assert len(value) == len(_UNMARKED)
    assert ctypes.string_at(place) == _UNMARKED.encode()
    ctypes.memmove(place, value.encode(), len(value))


if __name__ == "__main__":
    main()
