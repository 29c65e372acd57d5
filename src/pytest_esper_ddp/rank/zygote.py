"""The process that ranks are forked from: torch and the test modules loaded, one thread, no CUDA, no store.

Started as `python -m pytest_esper_ddp.rank.zygote SOCKET PARENT`. It is a pytest session of its own whose
run loop waits for worlds to fork instead of running tests.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import sys
from collections.abc import Generator
from typing import NoReturn

import pytest

from esper.lockstep.rank.lineage import die_with_parent
from pytest_esper_ddp.options import settings_of
from pytest_esper_ddp.rank.backing import move_into_files
from pytest_esper_ddp.rank.collecting import Collecting, run
from pytest_esper_ddp.rank.memory import settle
from pytest_esper_ddp.rank.pages import CopiedAhead
from pytest_esper_ddp.wire.channel import receive, send
from pytest_esper_ddp.wire.messages import Collected, Exited, Forked, ForkWorld
from pytest_esper_ddp.wire.parameters import parameter_digest
from pytest_esper_ddp.wire.start import forget_large_pages

# Tests on new ranks: a session with as many has more of them, as a rule.
_MANY = 16


class Zygote(Collecting):
    """The plugin that takes the run loop over."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(channel)
        self._children: dict[int, int] = {}  # pid by pidfd
        self._new_worlds = 0  # that were forked for one test each
        self._unforkable: dict[str, str] = {}  # file: what importing it has started

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """A module is imported in here."""
        before = _unforkable()
        report = yield
        now = _unforkable()  # less, where a thread has ended meanwhile
        if isinstance(collector, pytest.Module) and now not in ("", before):
            self._unforkable[str(collector.path)] = now
        return report

    def go_on(self, session: pytest.Session, items: dict[str, pytest.Item]) -> NoReturn:
        """Say what was collected, then fork worlds until the controller is gone."""
        digests = {nodeid: parameter_digest(item) for nodeid, item in items.items()}
        send(self.channel, Collected(digests, _unforkable(), self._unforkable, self.errors))
        from pytest_esper_ddp.rank.warm import warm_up

        warm_up(session, items.values(), settings_of(session.config).seed)
        atexit._clear()  # what modules have registered is for the end of one process, not for each rank's
        settle()
        self._ahead = CopiedAhead()
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.channel.fileno():
                    self._fork_world(session, items, poll)
                else:
                    self._reap(fd, poll)

    def _fork_world(self, session: pytest.Session, items: dict[str, pytest.Item], poll: select.poll) -> None:
        try:
            data, sockets, _, _ = socket.recv_fds(self.channel, 1, 1024)
        except ConnectionResetError:  # with something that we had sent still unread
            data, sockets = b"", []
        if not data:
            os._exit(0)  # the controller has closed its end
        request: ForkWorld = receive(self.channel)
        if not request.lasting:
            if self._new_worlds == _MANY:
                move_into_files()  # while no rank runs: it keeps us from reaping
            self._new_worlds += 1
            self._ahead.before_forks()
        pids = []
        me = os.getpid()
        for rank in range(len(sockets)):  # the others have been launched
            pid = os.fork()
            if pid == 0:
                die_with_parent(me)
                if not request.lasting:
                    self._ahead.in_rank(rank)
                self._be_rank(session, items, request, rank, sockets)
            pids.append(pid)
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = pid
            poll.register(pidfd, select.POLLIN)
        for fd in sockets:
            os.close(fd)
        send(self.channel, Forked(tuple(pids)))

    def _be_rank(
        self,
        session: pytest.Session,
        items: dict[str, pytest.Item],
        request: ForkWorld,
        rank: int,
        sockets: list[int],
    ) -> NoReturn:
        self.channel.close()
        for index, fd in enumerate(sockets):
            if index != rank:
                os.close(fd)
        for pidfd in self._children:
            os.close(pidfd)
        from pytest_esper_ddp.rank.worker import be_rank

        be_rank(session, items, socket.socket(fileno=sockets[rank]), rank, request)

    def _reap(self, pidfd: int, poll: select.poll) -> None:
        poll.unregister(pidfd)
        os.close(pidfd)
        pid = self._children.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        send(self.channel, Exited(pid, os.waitstatus_to_exitcode(status)))


def _unforkable() -> str:
    """What of this process a forked child would lack, in words; "" for nothing."""
    found = []
    if (threads := len(os.listdir("/proc/self/task")) - 1) > 0:
        found.append(f"{threads} thread(s)")
    if sys.modules["torch"].cuda.is_initialized():
        found.append("CUDA")
    return " and ".join(found)


if __name__ == "__main__":
    forget_large_pages()
    run(Zygote)
