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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast
from unittest.mock import patch

from esper.lockstep.rank.stacks import STACK_SIGNAL
from tests.esper.lockstep.late import evidence
from tests.forked import MARK, Program, be_alone, forkserver, own_signals, run_module

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


def warm_run(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """`python -m esper.lockstep run ARGUMENTS...`; `environment` has a mark of 32 letters.

    Raises subprocess.TimeoutExpired, and ends the run, when it takes longer than `timeout` seconds. A note of
    it says what its processes were doing.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        server = forkserver(*_LOADED)
        program = Program(be_launcher, arguments, environment, os.getcwd())
        pid = server.start(program, out.fileno(), err.fileno())
        doing = ""
        if (status := server.wait(timeout)) is None:
            doing = evidence(f"{MARK}={environment[MARK]}")
            os.kill(pid, signal.SIGKILL)
            server.wait(timeout)
        out.seek(0)
        err.seek(0)
        if status is None:
            error = subprocess.TimeoutExpired(arguments, timeout)
            error.add_note("\n".join([doing, "-- stdout", out.read(), "-- stderr", err.read()]))
            raise error
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


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
