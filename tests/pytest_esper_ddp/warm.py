"""A pytest session whose processes are forked from one that has loaded torch, so that it need not.

The process that its ranks are forked from is forked beside it, before it has done anything. Whatever else it
starts, as xdist's workers or ranks that are spawned, is started as ever.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from esper.lockstep.rank.lineage import die_with_parent
from tests.forked import be_alone, run_module

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
# A new interpreter, or torch as it is loaded, reads these.
READ_AT_START = ("PYTHON", "OMP_", "COV", "LD_", "GLIBC_", "MALLOC_", "TORCH", "CUDA_")
_REPLACED = "pytest_esper_ddp.rank.zygote"
_NOT_OF_A_NEW_INTERPRETER = ("esper", "pytest_esper_ddp", "tests")


def be_session(arguments: Sequence[str]) -> NoReturn:
    """In the forked process: `python -m pytest ARGUMENTS...`."""
    for name in [name for name in sys.modules if name.partition(".")[0] in _NOT_OF_A_NEW_INTERPRETER]:
        del sys.modules[name]
    for name, module in sys.modules.items():
        if "." not in name:  # of plugins, which pytest would say that it can not rewrite
            module.__doc__ = f"{module.__doc__} PYTEST_DONT_REWRITE"
    sys.path[0] = os.getcwd()
    _Popen.spare = _Spare()
    subprocess.Popen = _Popen  # type: ignore[assignment, misc]
    run_module("pytest", arguments)


class _Spare:
    """A child that has done nothing yet."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        parent = os.getpid()
        if (pid := os.fork()) == 0:
            die_with_parent(parent)
            self._channel.close()
            _become(theirs)
        theirs.close()
        self.pid = pid

    def become(self, arguments: Sequence[str], file: int, environment: Mapping[str, str]) -> None:
        """Have it be `python -m ARGUMENTS...`, with that file under the same number."""
        order = pickle.dumps((arguments, file, dict(environment), os.getcwd()))
        socket.send_fds(self._channel, [len(order).to_bytes(4, "little")], [file])
        self._channel.sendall(order)
        self._channel.close()


def _become(channel: socket.socket) -> NoReturn:
    data, files, _, _ = socket.recv_fds(channel, 4, 1)
    if not data:
        os._exit(0)  # the session has ended without ranks
    order = channel.recv(int.from_bytes(data, "little"), socket.MSG_WAITALL)
    arguments, file, environment, folder = pickle.loads(order)
    os.dup2(files[0], file)
    be_alone(environment, file)
    os.chdir(folder)
    sys.path[:] = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep), *sys.path[1:]]
    run_module(arguments[0], arguments[1:])


class _Popen(subprocess.Popen[Any]):
    """Takes the spare process for what it was made for, once."""

    spare: ClassVar[_Spare | None] = None

    def __init__(self, args: Sequence[str], *more: Any, **options: Any) -> None:
        spare = self.spare
        if spare is None or _REPLACED not in args or options.get("process_group") is not None:
            super().__init__(args, *more, **options)
            return
        (file,) = options["pass_fds"]
        _Popen.spare = None
        spare.become(args[2:], file, options["env"])
        self.args, self.pid, self.returncode = args, spare.pid, None
        self.stdin = self.stdout = self.stderr = None
        # What `wait` and `poll` look at.
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self._sigint_wait_secs = 0.25
