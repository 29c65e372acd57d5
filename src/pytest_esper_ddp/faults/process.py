"""Faults of the process itself, at an addressed collective, before it is issued."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from esper.lockstep.rank.interposer import Call, Proceed
from pytest_esper_ddp.faults.addressed import AtCollectives, Fire, Once
from pytest_esper_ddp.scenario import Fault

# More than any machine has, so the allocator refuses it at once and nothing is used up.
_TOO_MUCH = 1 << 60


class InjectedFault(RuntimeError):
    """Raised by the faults `raise` and `raise_in`."""


def at_collectives(fault: Fault, fire: Fire) -> AtCollectives:
    """What does it when its collective comes."""
    act = KINDS[fault.kind]

    def before(fault: Fault, call: Call, proceed: Proceed) -> Any:
        act(fault, call)
        return proceed(*call.args)

    return Once(fault, fire, before, onwards=fault.kind == "slow")


def _raise(fault: Fault, call: Call) -> None:
    raise InjectedFault(fault.arguments.get("message", "injected"))


def _exit(fault: Fault, call: Call) -> None:
    os._exit(fault.arguments.get("code", 1))


def _kill(fault: Fault, call: Call) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault(fault: Fault, call: Call) -> None:
    ctypes.memset(0, 0, 1)


def _stop(fault: Fault, call: Call) -> None:
    seconds = fault.arguments.get("for_seconds")
    if seconds is not None:
        subprocess.Popen(["/bin/sh", "-c", f"sleep {float(seconds)}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def _sleep(fault: Fault, call: Call) -> None:
    time.sleep(fault.arguments["seconds"])


def _busy(fault: Fault, call: Call) -> None:
    """One call in C, which lets no other thread of Python run: no bytecode comes between its parts."""
    over = (time.monotonic() + fault.arguments["seconds"]).__lt__
    any(map(over, iter(time.monotonic, None)))


def _out_of_memory(fault: Fault, call: Call) -> None:
    """What the allocator itself says to a request that can't be met."""
    if fault.arguments.get("allocator", "torch") == "python":
        bytearray(_TOO_MUCH)
    import torch

    torch.empty(_TOO_MUCH, dtype=torch.uint8, device=_device(call.args[0]))


def _device(tensors: Any) -> Any:
    while isinstance(tensors, list | tuple):
        if not tensors:
            return "cpu"
        tensors = tensors[0]
    return tensors.device


KINDS: dict[str, Callable[[Fault, Call], None]] = {
    "raise": _raise,
    "exit": _exit,
    "kill": _kill,
    "segfault": _segfault,
    "stop": _stop,
    "sleep": _sleep,
    "busy": _busy,
    "out_of_memory": _out_of_memory,
    "slow": _sleep,
}
