"""Ranks that torchrun has launched, seen from rank 0's pytest.

Of the launched processes that of rank 0 reports, so it cannot be a rank itself: pytest's own loop, its
reporters and its time-outs run there, and have to go on while rank 0 hangs. Rank 0 is a process that it has
forked or spawned, as all ranks are without a launcher. Each other launched process is a rank. What decides,
watches and reports is therefore the same code in both cases; only how a rank begins and ends is not.

A launched rank must not end, or torchrun ends all. So where a rank would be killed, the process begins anew
by `exec`: its number stays, whatever a test has left in it goes, and it comes back here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from esper.lockstep.rank.lineage import die_with_parent
from esper.lockstep.run.process import group, wait_status
from pytest_esper_ddp.controller.sources import Source
from pytest_esper_ddp.errors import HarnessError
from pytest_esper_ddp.launch import Place
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.meeting import is_ours, store_of
from pytest_esper_ddp.wire.messages import BecomeRank, ForkWorld, Joined, Leave
from pytest_esper_ddp.wire.parameters import parameter_digest

_JOIN_WITHIN = 120.0
_BEGIN_ANEW_WITHIN = 5.0
_LAST_WORDS = 1.0  # between the end of a process's connections and its own
# The session while a test on ranks runs.
RUNNING = pytest.StashKey[pytest.Session | None]()


class OtherSize(HarnessError):
    """A test for another number of ranks than have been launched."""


@dataclass(frozen=True)
class Member:
    """One life of a launched rank: from one exec to the next."""

    pid: int
    connection: socket.socket
    pidfd: int


class Crew:
    """All launched ranks but rank 0."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._listener = socket.socket(socket.AF_UNIX)
        self._name = f"pytest-ddp-{uuid.uuid4().hex}"
        self._listener.bind(f"\0{self._name}")
        self._listener.listen(place.world_size)
        self._store: Any = None  # kept: it may be the one that serves the others
        self._collected: dict[int, Mapping[str, str]] = {}
        self._waiting: dict[int, Member] = {}  # by rank: to be told what to do
        self._enlisted: dict[int, Member] = {}  # by process id: in a world
        self._abandoned = False

    def announce(self) -> None:
        """Tell the other ranks where to come to. Late: it imports torch."""
        if self._store is None:
            self._store = store_of(self.place)
            self._store.set("socket", self._name)

    def check(self, item: pytest.Item, world_size: int) -> None:
        """Raises HarnessError where the ranks that there are can't run it: OtherSize where they are more or
        less than it needs.
        """
        if world_size != self.place.world_size:
            raise OtherSize(f"needs {world_size} ranks, and torchrun has launched {self.place.world_size}")
        if len(self._collected) < self.place.world_size - 1:
            self._wait_for_all()
        for rank, items in sorted(self._collected.items()):
            if items.get(item.nodeid) != parameter_digest(item):
                raise HarnessError(f"launched rank {rank} has not collected {item.nodeid} as rank 0 has")

    def around(self, source: Source) -> Source:
        """What starts rank 0 by that source, and has the launched ranks join."""
        return _Crewed(self, source)

    def enlist(self, request: ForkWorld, ends: Sequence[socket.socket]) -> tuple[int, ...]:
        """Have every launched rank be one of this world: process ids, from rank 1 on."""
        members = [member for _, member in sorted(self._wait_for_all().items())]
        self._waiting = {}  # who comes next is another life
        for rank, (member, end) in enumerate(zip(members, ends, strict=True), start=1):
            if (before := self._enlisted.pop(member.pid, None)) is not None:
                _forget(before)
            self._enlisted[member.pid] = member
            with suppress(Closed, OSError):  # it has ended just now, which is heard later
                send(member.connection, BecomeRank(rank, request))
                socket.send_fds(member.connection, [b"c"], [end.fileno()])
        return tuple(member.pid for member in members)

    def has(self, pid: int) -> bool:
        """Whether this is a launched rank that is, or was, in a world."""
        return pid in self._enlisted

    def exit_code(self, pid: int) -> int | None:
        """How a rank ended; 0 where it has only begun anew, None while it is in its world."""
        member = self._enlisted[pid]
        if not _closed(member.connection):
            return None
        return _status(pid) if select.select([member.pidfd], [], [], _LAST_WORDS)[0] else 0

    def wait_left(self, pid: int, within: float) -> int | None:
        """Wait until a rank is out of its world, be it by its end or by beginning anew."""
        member = self._enlisted[pid]
        end = time.monotonic() + within
        while not _closed(member.connection):
            if (left := end - time.monotonic()) <= 0:
                return None
            select.select([member.connection], [], [], left)
        return 0

    def signal(self, pid: int, number: int) -> None:
        """What stands for a signal: any that would end the rank has it begin anew."""
        member = self._enlisted[pid]
        if number == signal.SIGCONT:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
        elif number == signal.SIGTERM:
            with suppress(Closed, OSError):
                if self._abandoned:
                    member.connection.shutdown(socket.SHUT_RDWR)
                else:
                    send(member.connection, Leave(None))
        elif self.wait_left(pid, _BEGIN_ANEW_WITHIN) is None:
            with suppress(ProcessLookupError):  # nothing else helps, and torchrun ends the others
                os.killpg(pid, number)
        else:
            for other in _group(pid):  # that its tests have started
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(other, number)

    def abandon(self) -> None:
        """The session is interrupted: ranks that would begin anew end."""
        self._abandoned = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending

    def leave(self, status: int) -> None:
        """The session is over: all end with its status. An interrupt does not wait for those that begin anew:
        they find nobody, and end with that status, too.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when the first has left
        self.announce()
        if status == pytest.ExitCode.INTERRUPTED:
            return
        with suppress(HarnessError):
            for member in self._wait_for_all().values():
                with suppress(Closed):
                    send(member.connection, Leave(status))

    def close(self) -> None:
        """Whoever still waits for us, or comes, is told by this that we are gone."""
        self._listener.close()
        for member in (*self._waiting.values(), *self._enlisted.values()):
            _forget(member)

    def _wait_for_all(self) -> dict[int, Member]:
        end = time.monotonic() + _JOIN_WITHIN
        while missing := [rank for rank in range(1, self.place.world_size) if rank not in self._waiting]:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._listener], [], [], left)[0]:
                raise HarnessError(f"launched rank {missing[0]} has not come within {_JOIN_WITHIN:g} s")
            self._accept()
        return self._waiting

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if not is_ours(connection):
            connection.close()
            return
        with suppress(Closed, OSError):  # it has ended just now
            joined: Joined = receive(connection)
            self._waiting[joined.rank] = Member(joined.pid, connection, os.pidfd_open(joined.pid))
            self._collected[joined.rank] = joined.items


class _Crewed:
    """A source of ranks of which all but rank 0 are there already."""

    def __init__(self, crew: Crew, source: Source) -> None:
        self._crew, self._source = crew, source
        self.channel = source.channel

    def start(self, request: ForkWorld, sockets: Sequence[socket.socket]) -> tuple[int, ...]:
        """As `Source.start`."""
        return self._source.start(request, sockets[:1]) + self._crew.enlist(request, sockets[1:])

    def first_words(self, request: ForkWorld, rank: int) -> tuple[object, ...]:
        """As `Source.first_words`."""
        return self._source.first_words(request, rank) if rank == 0 else ()

    def pump(self) -> None:
        """As `Source.pump`."""
        self._source.pump()

    def exit_code(self, pid: int) -> int | None:
        """As `Source.exit_code`."""
        return self._crew.exit_code(pid) if self._crew.has(pid) else self._source.exit_code(pid)

    def wait_exit(self, pid: int, within: float) -> int | None:
        """As `Source.wait_exit`."""
        if self._crew.has(pid):
            return self._crew.wait_left(pid, within)
        return self._source.wait_exit(pid, within)

    def signal(self, pid: int, number: int) -> None:
        """As `Source.signal`."""
        (self._crew if self._crew.has(pid) else self._source).signal(pid, number)


def finish_when_told(config: pytest.Config) -> None:
    """torchrun ends the ranks that are left by SIGTERM when one has ended, and then there is a failure to be
    reported: a test on ranks comes to its end by that of its ranks, any other is interrupted.
    """

    def told(number: int, frame: object) -> None:
        session = config.stash.get(RUNNING, None)
        if session is None:
            raise KeyboardInterrupt("ended by SIGTERM")
        session.shouldstop = "ended by SIGTERM"

    signal.signal(signal.SIGTERM, told)
    die_with_parent(os.getppid())


def _forget(member: Member) -> None:
    member.connection.close()
    os.close(member.pidfd)


def _closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _status(pid: int) -> int:
    """As waitpid has it; torchrun is the one that may wait for it, so what the kernel shows of it counts."""
    code = wait_status(pid)
    return -signal.SIGKILL if code is None else os.waitstatus_to_exitcode(code)  # None: reaped already


def _group(leader: int) -> list[int]:
    """All processes of a process group but the one that leads it."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if pid != leader and group(pid) == leader]
