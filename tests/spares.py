"""Interpreters that a forked program starts: children that were forked before it began, and did nothing yet.

Where a program starts `python ...` by subprocess.Popen, one of them takes that part, with its arguments,
environment, folder, files, session and process group. When none is left an interpreter is started as ever.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from esper.lockstep.rank.lineage import die_with_parent
from tests.forked import be_alone, own_signals

_PR_SET_PDEATHSIG = 1
_LENGTH = 8
_AS_EVER = subprocess.Popen._execute_child  # type: ignore[attr-defined]
# Command, environment, folder, numbers of the files that come with it, whether it leads a session, its group.
_Order = tuple[list[str], dict[str, str], str, list[int], bool, int | None]
Prepare = Callable[[list[str]], object]
_spares: list[_Spare] = []


class _Spare:
    """A child that waits for its order, and ends with this process without one."""

    def __init__(self, prepare: Prepare) -> None:
        self._channel, theirs = socket.socketpair()
        parent = os.getpid()
        if (pid := os.fork()) == 0:
            die_with_parent(parent)
            self._channel.close()
            for other in _spares:
                other._channel.close()  # or it would not see that nobody is there any more
            _become(theirs, prepare)
        theirs.close()
        self.pid = pid

    def become(self, order: _Order, files: Sequence[int]) -> None:
        """Returns once it has its session and its files: what is sent to its group reaches it."""
        text = pickle.dumps(order)
        with self._channel:
            socket.send_fds(self._channel, [len(text).to_bytes(_LENGTH, "little")], files)
            self._channel.sendall(text)
            self._channel.recv(1)


def keep_spares(number: int, prepare: Prepare = lambda command: None) -> None:
    """Fork so many, and have this process's subprocess.Popen use them. `prepare` is called in a spare with
    its command before it is that.
    """
    _spares.clear()
    subprocess.Popen._execute_child = _AS_EVER  # type: ignore[attr-defined]
    for _ in range(number):
        _spares.append(_Spare(prepare))
    # Of the class itself, which others may have imported by name.
    subprocess.Popen._execute_child = _execute_child  # type: ignore[attr-defined]


def _execute_child(self: subprocess.Popen[Any], args: Any, *more: Any) -> None:
    """In the place of subprocess.Popen's, as which it has all handles made."""
    _, preexec, _, kept, folder, environment, _, _, shell, *pipes = more[:15]
    *_, session, group = more
    interpreter = not isinstance(args, str | bytes | os.PathLike) and args[0] == sys.executable
    if not _spares or shell or preexec is not None or not interpreter:
        _AS_EVER(self, args, *more)
        return
    given = {0: pipes[0], 1: pipes[3], 2: pipes[5]}
    files = {number: number if file == -1 else file for number, file in given.items()}
    files.update({number: number for number in kept})
    spare = _spares.pop(0)
    spare.become(
        (
            [str(word) for word in args],
            dict(os.environ if environment is None else environment),
            str(folder or os.getcwd()),
            list(files),
            bool(session),
            None if group == -1 else group,
        ),
        list(files.values()),
    )
    self.pid, self._child_created = spare.pid, True  # type: ignore[attr-defined]
    self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _become(channel: socket.socket, prepare: Prepare) -> NoReturn:
    length, files, _, _ = socket.recv_fds(channel, _LENGTH, 64)
    if not length:
        os._exit(0)
    order: _Order = pickle.loads(channel.recv(int.from_bytes(length, "little"), socket.MSG_WAITALL))
    command, environment, folder, numbers, session, group = order
    if session:
        os.setsid()
    elif group is not None:
        os.setpgid(0, group)
    above = max(*numbers, *files, channel.fileno()) + 1  # where no number is one that a file is to have
    moved = [os.dup2(file, above + at) for at, file in enumerate(files)]
    ready = os.dup2(channel.fileno(), above + len(moved))
    for number, file in zip(numbers, moved, strict=True):
        os.dup2(file, number)
    be_alone(environment, ready, *(number for number in numbers if number > 2))
    os.chdir(folder)
    own_signals()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)  # who starts an interpreter may well end before it
    os.write(ready, b".")
    os.close(ready)
    be_interpreter(command, prepare)


def be_interpreter(command: list[str], prepare: Prepare = lambda command: None) -> NoReturn:
    """Do what `python ...` does, and end as it does."""
    sys.orig_argv = command
    words = command[1:]
    while words[0] == "-u":
        words.pop(0)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    for option in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings.simplefilter(option)  # type: ignore[arg-type]
    sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-c":
        first, code, sys.argv = "", words[1], ["-c", *words[2:]]
    elif words[0] == "-m":
        first, sys.argv = os.getcwd(), ["-m", *words[2:]]
        code = f"import runpy; runpy.run_module({words[1]!r}, run_name='__main__', alter_sys=True)"
    else:
        first, sys.argv = str(Path(words[0]).resolve().parent), words
        code = f"import runpy; runpy.run_path({words[0]!r}, run_name='__main__')"
    sys.path[:] = [first, *places, *sys.path[1:]]
    prepare(command)
    # Does what the interpreter does with a SystemExit and before it ends; the frames below are nobody's.
    failed = ctypes.pythonapi.PyRun_SimpleString(code.encode())
    ctypes.pythonapi.Py_Exit(1 if failed else 0)
    raise AssertionError("unreachable")
