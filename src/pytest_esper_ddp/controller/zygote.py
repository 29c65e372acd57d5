"""The controller's end of the zygote: starts it, has worlds forked, hears which ranks have ended."""

from __future__ import annotations

import os
import pickle
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pytest_esper_ddp.controller.coverage import OF_SUBPROCESSES
from pytest_esper_ddp.errors import HarnessError
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.messages import Broken, Collect, Collected, Exited, Forked, ForkWorld, Preload

# torch.optim imports dynamo at its first call, 0.7 s that every rank would pay after its fork.
_NEEDS_DYNAMO = re.compile(rb"\boptim\b|\bcompile\b|\besper\b")
_START_WITHIN = 60.0
_END_WITHIN = 2.0
_ALREADY_IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"
# Options that shape the session's output or choose among items: the zygote collects all and prints nothing.
_RESET: dict[str, Any] = {
    "numprocesses": None,
    "maxprocesses": None,
    "dist": "no",
    "tx": [],
    "looponfail": False,
    "cov_source": [],
    "no_cov": True,
    "cov_report": {},
    "xmlpath": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "stepwise_reset": False,
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "maxfail": 0,
    "durations": None,
    "basetemp": None,
    "cacheclear": False,
    "collectonly": False,
    "pastebin": None,
    # A rank has no terminal: pdb would read an end of file there and end the rank.
    "usepdb": False,
    "trace": False,
    "report_log": None,
}


class ZygoteClient:
    """One zygote process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._exits: dict[int, int] = {}
        self._preloaded = False
        self._broken: str | None = None  # what it said last
        self.collected: Collected | None = None
        ours, theirs = socket.socketpair()
        self.channel = ours
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:  # else the zygote, and each rank with -s, would write into pytest's capture
            capture.suspend_global_capture(in_=True)
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pytest_esper_ddp.rank.zygote",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={
                    **{name: value for name, value in os.environ.items() if name not in OF_SUBPROCESSES},
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                },
            )
        finally:
            if capture is not None:
                capture.resume_global_capture()
            theirs.close()

    def preload_for(self, source: bytes) -> None:
        """Have what the tests of a file will need imported while pytest still collects."""
        if not self._preloaded and _NEEDS_DYNAMO.search(source):
            self._preloaded = True
            self._send(Preload("torch._dynamo"))

    def collect(self, items: Sequence[pytest.Item]) -> None:
        """Tell it to collect the files of these items; it answers when it is ready to fork."""
        options = {key: value for key, value in vars(self._config.option).items() if _pickles(value)}
        options.update({key: value for key, value in _RESET.items() if key in options})
        options.pop("file_or_dir", None)  # the files below; pytest's parser warns of others on stderr
        # Our own modules were imported before its pytest could rewrite them, and warnings may be errors.
        options["pythonwarnings"] = [*(options.get("pythonwarnings") or ()), _ALREADY_IMPORTED]
        files = tuple(dict.fromkeys(str(item.path) for item in items))
        self._send(Collect(options, files, str(self._config.invocation_params.dir)))

    def wait_collected(self) -> Collected:
        """What it found. Raises HarnessError when it can't go on or does not answer within a minute."""
        if self.collected is None:
            self.collected = self._wait_for(Collected, _START_WITHIN)
        return self.collected

    def fork(self, request: ForkWorld, sockets: Sequence[socket.socket]) -> tuple[int, ...]:
        """Process ids of a new world's ranks, each of which holds its end of a socket pair."""
        self._check()
        try:
            socket.send_fds(self.channel, [b"w"], [one.fileno() for one in sockets])
        except OSError as error:
            raise HarnessError(self._obituary()) from error
        self._send(request)
        forked: Forked = self._wait_for(Forked, _START_WITHIN)
        return forked.pids

    def pump(self) -> None:
        """Take the messages that are there."""
        while select.select([self.channel], [], [], 0)[0]:
            self._take(self._receive())

    def exit_code(self, pid: int) -> int | None:
        """How a rank ended, as waitpid has it; None while it lives."""
        return self._exits.get(pid)

    def wait_exit(self, pid: int, within: float) -> int | None:
        """As `exit_code`, after waiting up to `within` seconds for it."""
        end = time.monotonic() + within
        while pid not in self._exits and (left := end - time.monotonic()) > 0:
            if select.select([self.channel], [], [], left)[0]:
                self._take(self._receive())
        return self._exits.get(pid)

    def close(self) -> None:
        """End it and wait for it; its ranks end with it."""
        self.channel.close()
        if self.collected is None:  # it may be importing torch, and nothing waits for that any more
            self._process.send_signal(signal.SIGKILL)
        try:
            self._process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _send(self, message: object) -> None:
        self._check()
        try:
            send(self.channel, message)
        except Closed as error:
            raise HarnessError(self._obituary()) from error

    def _receive(self) -> object:
        try:
            return receive(self.channel)
        except Closed as error:
            raise HarnessError(self._obituary()) from error

    def _take(self, message: object) -> object:
        match message:
            case Exited(pid, code):
                self._exits[pid] = code
            case Broken(reason):
                self._broken = f"the process that ranks are forked from can't go on:\n{reason}"
                raise HarnessError(self._broken)
        return message

    def _wait_for(self, kind: type[Any], within: float) -> Any:
        self._check()
        end = time.monotonic() + within
        while (left := end - time.monotonic()) > 0:
            if select.select([self.channel], [], [], left)[0]:
                message = self._take(self._receive())
                if isinstance(message, kind):
                    return message
        raise HarnessError(f"the process that ranks are forked from did not answer within {within:g} s")

    def _check(self) -> None:
        """It answers nothing any more once it has said that it can't go on."""
        if self._broken is not None:
            raise HarnessError(self._broken)

    def _obituary(self) -> str:
        if self._broken is not None:
            return self._broken
        try:
            code = self._process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            return "the process that ranks are forked from closed its connection"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return f"the process that ranks are forked from has ended with {how}"


def _pickles(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001  whatever a plugin put among the options
        return False
    return True
