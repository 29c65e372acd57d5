"""The controller's end of the zygote: starts it, has worlds forked, hears which ranks have ended."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from esper.lockstep.run.process import state
from pytest_esper_ddp.controller.collecting import order_to_collect, signal_group, start_collecting
from pytest_esper_ddp.errors import HarnessError
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.messages import Broken, Collected, Exited, Forked, ForkWorld, Preload
from pytest_esper_ddp.wire.start import large_pages

# torch.optim imports dynamo at its first call, 0.7 s that every rank would pay after its fork.
_NEEDS_DYNAMO = re.compile(rb"\boptim\b|\bcompile\b|\besper\b")
_START_WITHIN = 60.0
_END_WITHIN = 2.0
_LOOK_EVERY = 0.5


class ZygoteEnded(HarnessError):
    """It is gone, without having said that it can't go on."""


class ZygoteClient:
    """One zygote process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._exits: dict[int, int] = {}
        self.preloaded = False
        self._broken: str | None = None  # what it said last
        self._was_stopped = False
        self.collected: Collected | None = None
        ours, theirs = socket.socketpair()
        self.channel = ours
        with theirs:
            self._process = start_collecting(
                config, "pytest_esper_ddp.rank.zygote", theirs, more=large_pages(os.environ)
            )

    def preload_for(self, source: bytes) -> None:
        """Have what the tests of a file will need imported while pytest still collects."""
        if not self.preloaded and _NEEDS_DYNAMO.search(source):
            self.preload()

    def preload(self) -> None:
        """Have it import dynamo now."""
        self.preloaded = True
        with suppress(ZygoteEnded):  # said when somebody waits for it
            self._send(Preload("torch._dynamo"))

    def collect(self, items: Sequence[pytest.Item]) -> None:
        """Tell it to collect the files of these items; it answers when it is ready to fork."""
        with suppress(ZygoteEnded):
            self._send(order_to_collect(self._config, items))

    def wait_collected(self) -> Collected:
        """What it found. Raises HarnessError when it can't go on or does not answer within a minute."""
        if self.collected is None:
            self._wait_for(Collected, _START_WITHIN)
        assert self.collected is not None
        return self.collected

    def start(self, request: ForkWorld, sockets: Sequence[socket.socket]) -> tuple[int, ...]:
        """Process ids of a new world's ranks, each of which holds its end of a socket pair."""
        self._check()
        try:
            socket.send_fds(self.channel, [b"w"], [one.fileno() for one in sockets])
        except OSError as error:
            raise self._obituary() from error
        self._send(request)
        forked: Forked = self._wait_for(Forked, _START_WITHIN)
        return forked.pids

    @staticmethod
    def first_words(request: ForkWorld, rank: int) -> tuple[object, ...]:
        """What a rank has to be told over its own channel before it is one: nothing."""
        return ()

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

    def signal(self, pid: int, number: int) -> None:
        """Send it to a rank and whatever its tests have started."""
        signal_group(pid, number)

    def close(self) -> None:
        """End it and wait for it; its ranks end with it."""
        with suppress(OSError):  # it has ended before
            self.channel.shutdown(socket.SHUT_RDWR)  # what a test has forked here may have a copy
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
            raise self._obituary() from error

    def _receive(self) -> object:
        try:
            return receive(self.channel)
        except Closed as error:
            raise self._obituary() from error

    def _take(self, message: object) -> object:
        match message:
            case Collected():
                self.collected = message  # whoever has asked for something else meanwhile
            case Exited(pid, code):
                self._exits[pid] = code
            case Forked(pids):  # the system gives numbers again, and how their last holders ended came before
                for pid in pids:
                    self._exits.pop(pid, None)
            case Broken(reason):
                self._broken = f"the process that ranks are forked from can't go on:\n{reason}"
                raise HarnessError(self._broken)
        return message

    def _wait_for(self, kind: type[Any], within: float) -> Any:
        self._check()
        end = time.monotonic() + within
        stopped = False
        while (left := end - time.monotonic()) > 0:
            if select.select([self.channel], [], [], min(left, _LOOK_EVERY))[0]:
                message = self._take(self._receive())
                if isinstance(message, kind):
                    return message
                stopped = False
            else:
                # Twice in a row: where a whole session is stopped and goes on, this may be the first to.
                before, stopped = stopped, state(self._process.pid) == "T"
                if before and stopped:
                    self._was_stopped = True
                    self._process.kill()
                    raise self._obituary()
        raise HarnessError(f"the process that ranks are forked from did not answer within {within:g} s")

    def _check(self) -> None:
        """It answers nothing any more once it has said that it can't go on."""
        if self._broken is not None:
            raise HarnessError(self._broken)

    def _obituary(self) -> HarnessError:
        if self._broken is not None:
            return HarnessError(self._broken)
        try:
            code = self._process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            return ZygoteEnded("the process that ranks are forked from closed its connection")
        if self._was_stopped:
            return ZygoteEnded(
                "the process that ranks are forked from was stopped by a signal, and was ended"
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return ZygoteEnded(f"the process that ranks are forked from has ended with {how}")
