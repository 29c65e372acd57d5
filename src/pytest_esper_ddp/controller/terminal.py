"""The terminal while a debugger runs in a rank: one rank has it at a time, and pytest's clocks stand."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress

import pytest

from pytest_esper_ddp.wire.channel import Closed, send
from pytest_esper_ddp.wire.messages import Debugger, Terminal


class TerminalDesk:
    """Hands pytest's standard input to the ranks of one test, and takes it back."""

    def __init__(self, config: pytest.Config) -> None:
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self.holder: int | None = None
        self.used = False  # whoever waited meanwhile is not to be judged by how long
        self._examined = False
        self._waiting: list[tuple[int, int, socket.socket]] = []
        self._since = 0.0
        self._foreground = False

    def ask(self, rank: int, pid: int, channel: socket.socket, *, post_mortem: bool) -> None:
        """A rank wants it. Of those that have failed only the first gets it; breakpoints wait in line."""
        if post_mortem and self._examined:
            with suppress(Closed):
                send(channel, Terminal(granted=False))
            return
        self._examined |= post_mortem
        self._waiting.append((rank, pid, channel))
        self._serve()

    def leave(self, rank: int) -> float:
        """A rank has done with it, or has ended; seconds for which all clocks have stood."""
        self._waiting = [one for one in self._waiting if one[0] != rank]
        if self.holder != rank:
            return 0.0
        stood = time.monotonic() - self._since
        self.holder = None
        self._take_back()
        self._serve()
        return stood

    def close(self) -> None:
        """The test is over."""
        self._waiting.clear()
        if self.holder is not None:
            self.leave(self.holder)

    def _serve(self) -> None:
        if self.holder is not None or not self._waiting:
            return
        rank, pid, channel = self._waiting.pop(0)
        self.holder, self.used, self._since = rank, True, time.monotonic()
        if self._capture is not None:
            self._capture.suspend_global_capture(in_=True)
        with suppress(OSError):  # no terminal, or this session runs in the background
            self._foreground = os.tcgetpgrp(0) == os.getpgrp()
            if self._foreground:
                os.tcsetpgrp(0, pid)
        with suppress(Closed, OSError):  # it has ended: that is heard next
            send(channel, Terminal(granted=True))
            socket.send_fds(channel, [b"t"], [0])

    def _take_back(self) -> None:
        if self._foreground:
            self._foreground = False
            # From the background this would stop us.
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with suppress(OSError):
                os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)
        if self._capture is not None:
            self._capture.resume_global_capture()


def debugger_of(config: pytest.Config, rank: int | None) -> Debugger:
    """What the options of the session ask for; `rank` is that of `--ddp-debug-rank`."""
    option = config.option
    return Debugger(getattr(option, "usepdb", False), getattr(option, "trace", False), rank)
