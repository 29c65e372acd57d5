"""Runs of `python -m esper.lockstep run` whose processes are forked from one that has loaded torch.

How a rank is started is passed by, too: that is for the tests that run the command itself.
"""

from __future__ import annotations

import faulthandler
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, cast
from unittest.mock import patch

from esper.lockstep.rank.stacks import STACK_SIGNAL
from tests.esper.lockstep.late import evidence
from tests.forked import MARK, Program, be_alone, forkserver, own_signals, run_module
from tests.spares import be_interpreter, keep_spares

# What ranks load, and those who start or watch them.
LOADED = (
    "torch._dynamo",  # which DDP, optimizers and functional collectives import at their first use
    "torch.distributed",
    "torch.distributed.run",
    "torch.nn.parallel",
    "torch.utils.data",
    "esper.lockstep.cli",
    "esper.lockstep.run.launch",
    "esper.lockstep.rank.hooks",
    "esper.lockstep.rank.intercept",
    "esper.lockstep.rank.joining",
    "esper.lockstep.watchdog.watchdog",
    "esper.training",
)


def warm_run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    timeout: float,
    prepare: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python -m esper.lockstep run ARGUMENTS...`; `environment` has a mark of 32 letters, and `prepare`, a
    module's function, is called in its process before it begins.

    Raises subprocess.TimeoutExpired, and ends the run, when it takes longer than `timeout` seconds. A note of
    it says what its processes were doing.
    """
    body = be_launcher if prepare is None else partial(_be_prepared, prepare)
    return _run(Program(body, arguments, environment, os.getcwd()), timeout)


def warm_python(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float, *, starts: int
) -> subprocess.CompletedProcess[str]:
    """The same of `python ARGUMENTS...`, which starts so many interpreters."""
    return _run(Program(partial(_be_python, starts), arguments, environment, os.getcwd()), timeout)


def _be_python(starts: int, arguments: Sequence[str]) -> NoReturn:
    keep_spares(starts)
    be_interpreter([sys.executable, *arguments])


def _run(program: Program, timeout: float) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = forkserver(*LOADED).start(program, out.fileno(), err.fileno())
        try:
            status = started.wait(timeout)
        except subprocess.TimeoutExpired as error:
            doing = evidence(f"{MARK}={program.environment[MARK]}")
            started.send_signal(signal.SIGKILL)
            started.wait(timeout)
            out.seek(0)
            err.seek(0)
            error.add_note("\n".join([doing, "-- stdout", out.read(), "-- stderr", err.read()]))
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(program.arguments, status, out.read(), err.read())


def _be_prepared(prepare: Callable[[], object], arguments: Sequence[str]) -> NoReturn:
    prepare()
    be_launcher(arguments)


def be_launcher(arguments: Sequence[str]) -> NoReturn:
    """In the forked process."""
    from esper.lockstep.run import launch

    faulthandler.register(STACK_SIGNAL, 2, all_threads=True)
    sys.argv = ["-m", "run", *arguments]
    with patch.object(launch, "_start", _fork_rank):
        runpy.run_module("esper.lockstep", run_name="__main__", alter_sys=True)  # leaves by os._exit
    raise AssertionError("it has come back")


def _fork_rank(
    command: Sequence[str], run_dir: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """In the launcher: what `launch._start` does there."""
    if (pid := os.fork()) == 0:
        os.setpgid(0, 0)
        own_signals()
        be_alone(environment)
        run_module("esper.lockstep.rank", [str(run_dir), *command])
    os.setpgid(pid, pid)
    return cast("subprocess.Popen[bytes]", _Child(pid))


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
