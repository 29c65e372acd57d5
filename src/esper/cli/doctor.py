"""`esper doctor`: what there is on this machine, and whether what esper rests on works here."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("torch", "numpy", "pytest", "matplotlib", "scikit-learn", "rich", "tensorboard")


def add_commands(commands: Any) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="say what is here and whether it works")
    parser.set_defaults(do=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Print a line a finding; 1 when something that is needed does not work."""
    from esper import __version__

    well = True
    lines: list[tuple[str, str]] = [("esper", __version__), ("python", platform.python_version())]
    lines += [(name, _version(name)) for name in _PACKAGES]
    for name, check in _checks():
        try:
            lines.append((name, check()))
        except Exception as error:  # noqa: BLE001  whatever does not work is what was asked for
            well = False
            lines.append((name, f"does not work: {type(error).__name__}: {error}"))
    wide = max(len(name) for name, _ in lines)
    for name, text in lines:
        sys.stdout.write(f"{name:<{wide}}  {text}\n")
    return 0 if well else 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _checks() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "processors", lambda: f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"
    yield "backends", _backends
    yield "devices", _devices
    yield "fork", _fork
    yield "pidfd", _pidfd
    yield "interception", _interception


def _backends() -> str:
    import torch.distributed as dist

    names = {
        "gloo": dist.is_gloo_available(),
        "nccl": dist.is_nccl_available(),
        "mpi": dist.is_mpi_available(),
    }
    if not names["gloo"]:
        raise RuntimeError("torch was built without gloo")
    return ", ".join(name for name, there in names.items() if there)


def _devices() -> str:
    import torch

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *cuda])


def _fork() -> str:
    child = os.fork()
    if child == 0:
        os._exit(0)
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError(f"a child that was to end ended with status {status}")
    return "works"


def _pidfd() -> str:
    os.close(os.pidfd_open(os.getpid()))
    return "works"


def _interception() -> str:
    from esper.lockstep.rank import compiled
    from esper.lockstep.rank.hooks import check_hooks

    check_hooks()
    how = "compiled" if compiled.load() else "in Python; `python -m esper.lockstep build` compiles it"
    return f"works, {how}"
