"""A debugger in a rank: asks the controller for the terminal, and gives it back."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import pytest

from pytest_esper_ddp.wire.channel import receive, send
from pytest_esper_ddp.wire.messages import AsksForTerminal, Debugger, LeavesTerminal, Terminal


class Debugging:
    """The plugin of one rank. pytest's own debugger does the rest, as it does in any test."""

    _config: pytest.Config
    _channel: socket.socket
    _debugger: Debugger

    def __init__(self) -> None:
        self._mine = False
        self._terminal: int | None = None  # file descriptor, while this rank has it

    def attach(self, config: pytest.Config, channel: socket.socket, rank: int, debugger: Debugger) -> None:
        """This process is that rank from now on, and asks through its channel."""
        self._config, self._channel, self._debugger = config, channel, debugger
        self._mine = debugger.rank in (None, rank)
        if not self._mine:
            sys.breakpointhook = lambda *args, **keywords: None
        elif debugger.trace and rank == (debugger.rank or 0):
            from _pytest.debugging import PdbTrace

            config.pluginmanager.register(PdbTrace())

    @pytest.hookimpl
    def pytest_enter_pdb(self) -> None:
        """`breakpoint()`, a trace, or below: a prompt comes next. Waits while another rank is debugged."""
        self._take(post_mortem=False)

    @pytest.hookimpl
    def pytest_leave_pdb(self, pdb: Any) -> None:
        """The program goes on. With breakpoints set it may come back to the same prompt without a word."""
        if not getattr(pdb, "breaks", None):
            self.leave()

    @pytest.hookimpl
    def pytest_exception_interact(self, node: pytest.Item, call: Any, report: Any) -> None:
        """With --pdb: the first rank that fails shows where, the others do not."""
        if not (self._mine and self._debugger.post_mortem and self._take(post_mortem=True)):
            return
        from _pytest.debugging import PdbInvoke

        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        silent, reporter._tw._file = reporter._tw._file, _Standard()
        try:
            PdbInvoke().pytest_exception_interact(node, call, report)
        finally:
            reporter._tw._file = silent
            self.leave()

    def leave(self) -> None:
        """Give the terminal back, if this rank has it."""
        if self._terminal is not None:
            if os.path.sameopenfile(0, self._terminal):  # nothing captures: a read would stop this process
                with open(os.devnull) as nothing:
                    os.dup2(nothing.fileno(), 0)
            os.close(self._terminal)
            self._terminal = None
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.stdout.flush()
            send(self._channel, LeavesTerminal())

    def _take(self, *, post_mortem: bool) -> bool:
        if self._terminal is None:
            send(self._channel, AsksForTerminal(post_mortem))
            answer: Terminal = receive(self._channel)
            if not answer.granted:
                return False
            _, (self._terminal,), _, _ = socket.recv_fds(self._channel, 1, 1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # Whenever capture is suspended it puts its own back.
        os.dup2(self._terminal, 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        return True


class _Standard:
    """Writes to whatever standard output is at the time: capture changes it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)
