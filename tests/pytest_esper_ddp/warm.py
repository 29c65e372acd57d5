"""A pytest session whose processes are forked from one that has loaded torch, so that it need not.

The process that its ranks are forked from is forked beside it, before it has done anything, and xdist's
workers are, each with one of its own. Whatever else it starts, as ranks that are spawned, is started as ever.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from tests.mounts import mount_own
from tests.spares import be_interpreter, keep_spares

# What both load in any case, plugins of others among it.
LOADED = (
    "torch._dynamo",
    "torch.distributed",
    "torch.nn.parallel",
    "numpy.random",
    "pytest",
    "hypothesis.internal.observability",  # what its plugin loads
    "anyio.pytest_plugin",
    "pytest_cov.plugin",
    "pytest_timeout",
    "xdist.plugin",
)
# A new interpreter, or torch as it is loaded, reads these; OMP_NUM_THREADS as well, but here there is one
# thread, whatever that says.
READ_AT_START = ("PYTHON", "COV", "LD_", "GLIBC_", "MALLOC_", "TORCH_")
_NOT_OF_A_NEW_INTERPRETER = ("esper", "pytest_esper_ddp", "tests")


def be_python(arguments: Sequence[str]) -> NoReturn:
    """In the forked process: `python ARGUMENTS...`; before them, how many it starts, or 0 for as usual."""
    starts, *words = arguments
    mount_own()
    keep_spares(int(starts) or _started_by(words), _be_new)
    be_interpreter([sys.executable, *words], _forget)


def _started_by(arguments: Sequence[str]) -> int:
    """How many interpreters this one will start."""
    if "torch.distributed.run" in arguments:
        (ranks,) = (word for word in arguments if word.startswith("--nproc-per-node="))
        return int(ranks.partition("=")[2])
    if "-n" in arguments:
        return int(arguments[arguments.index("-n") + 1])
    if os.environ.get("RANK") == "0":
        return 4  # a rank in its own place, and again whenever a test has failed
    return 0 if "RANK" in os.environ else 1


def _be_new(command: Sequence[str]) -> None:
    """In what these start: a worker of xdist and what torchrun has launched start others themselves."""
    if "-c" in command or "pytest" in command:
        keep_spares(_started_by(command), _be_new)
    _forget(command)


def _forget(command: Sequence[str]) -> None:
    tempfile.tempdir = None  # as found where this was forked from
    for name in [name for name in sys.modules if name.partition(".")[0] in _NOT_OF_A_NEW_INTERPRETER]:
        del sys.modules[name]
    for name, module in sys.modules.items():
        if (
            "." not in name and name != "__main__"
        ):  # of plugins, which pytest would say that it can not rewrite
            module.__doc__ = f"{module.__doc__} PYTEST_DONT_REWRITE"
