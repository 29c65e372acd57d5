"""Faults of the process itself, at an addressed collective."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable

from pytest_esper_ddp.scenario import Fault


class InjectedFault(RuntimeError):
    """Raised by the fault `raise`."""


def apply(fault: Fault) -> bool:
    """Do it; False, since the collective itself is left as it is."""
    _KINDS[fault.kind](fault)
    return False


def _raise(fault: Fault) -> None:
    raise InjectedFault(fault.arguments.get("message", "injected"))


def _exit(fault: Fault) -> None:
    os._exit(fault.arguments.get("code", 1))


def _kill(fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault(fault: Fault) -> None:
    ctypes.memset(0, 0, 1)


def _stop(fault: Fault) -> None:
    seconds = fault.arguments.get("for_seconds")
    if seconds is not None:
        subprocess.Popen(["/bin/sh", "-c", f"sleep {float(seconds)}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def _sleep(fault: Fault) -> None:
    time.sleep(float(fault.arguments["seconds"]))


_KINDS: dict[str, Callable[[Fault], None]] = {
    "raise": _raise,
    "exit": _exit,
    "kill": _kill,
    "segfault": _segfault,
    "stop": _stop,
    "sleep": _sleep,
}
