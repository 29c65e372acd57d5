"""Ranks that are no forks: the controller starts each as a process of its own and hears how it ends."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Sequence

import pytest

from pytest_esper_ddp.controller.collecting import order_to_collect, signal_group, start_collecting
from pytest_esper_ddp.errors import HarnessError
from pytest_esper_ddp.wire.messages import BecomeRank, ForkWorld

_MODULE = "pytest_esper_ddp.rank.spawned"


class Spawner:
    """Starts ranks for the tests of `items`, whose files each of them collects; in the place of a zygote."""

    def __init__(self, config: pytest.Config, items: Sequence[pytest.Item]) -> None:
        self._config = config
        self._order = order_to_collect(config, items)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._pids: dict[int, int] = {}  # by pidfd
        self._exits: dict[int, int] = {}
        self.channel = select.epoll()  # readable when a rank has ended

    def start(self, request: ForkWorld, sockets: Sequence[socket.socket]) -> tuple[int, ...]:
        """Process ids of a new world's ranks, each of which holds its end of a socket pair."""
        pids: list[int] = []
        try:
            for end in sockets:
                process = start_collecting(self._config, _MODULE, end, own_group=True)
                pids.append(process.pid)
                self._exits.pop(process.pid, None)  # of an earlier rank with this number
                self._processes[process.pid] = process
                pidfd = os.pidfd_open(process.pid)
                self._pids[pidfd] = process.pid
                self.channel.register(pidfd, select.EPOLLIN)
        except OSError as error:
            for pid in pids:
                self._processes[pid].kill()
            raise HarnessError(f"a rank could not be started: {error}") from error
        return tuple(pids)

    def first_words(self, request: ForkWorld, rank: int) -> tuple[object, ...]:
        """What a rank has to be told over its own channel before it is one."""
        return self._order, BecomeRank(rank, request)

    def pump(self) -> None:
        """Note which ranks have ended."""
        self._wait(0.0)

    def exit_code(self, pid: int) -> int | None:
        """How a rank ended, as waitpid has it; None while it lives."""
        return self._exits.get(pid)

    def wait_exit(self, pid: int, within: float) -> int | None:
        """As `exit_code`, after waiting up to `within` seconds for it."""
        end = time.monotonic() + within
        while pid not in self._exits and (left := end - time.monotonic()) > 0:
            self._wait(left)
        return self._exits.get(pid)

    def signal(self, pid: int, number: int) -> None:
        """Send it to a rank and whatever its tests have started."""
        signal_group(pid, number)

    def close(self) -> None:
        """End what is left, which worlds have ended before."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        for pidfd in self._pids:
            os.close(pidfd)
        self.channel.close()

    def _wait(self, within: float) -> None:
        for pidfd, _ in self.channel.poll(within):
            self.channel.unregister(pidfd)
            os.close(pidfd)
            pid = self._pids.pop(pidfd)
            self._exits[pid] = self._processes.pop(pid).wait()
