"""Where ranks come from: a zygote forks them, or each is spawned where a fork would lack something."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from pytest_esper_ddp.controller.spawner import Spawner
from pytest_esper_ddp.controller.zygote import ZygoteClient, ZygoteEnded
from pytest_esper_ddp.errors import HarnessError
from pytest_esper_ddp.wire.messages import Collected, ForkWorld
from pytest_esper_ddp.wire.parameters import parameter_digest, parameters


class Source(Protocol):
    """What starts ranks, and hears how they end."""

    @property
    def channel(self) -> socket.socket | select.epoll:
        """Readable when there is something for `pump`."""

    def start(self, request: ForkWorld, sockets: Sequence[socket.socket]) -> tuple[int, ...]:
        """Process ids of a new world's ranks, each of which holds its end of a socket pair."""

    def first_words(self, request: ForkWorld, rank: int) -> tuple[object, ...]:
        """What a rank has to be told over its own channel before it is one."""

    def pump(self) -> None:
        """Take what there is to hear."""

    def exit_code(self, pid: int) -> int | None:
        """How a rank ended, as waitpid has it; None while it lives."""

    def wait_exit(self, pid: int, within: float) -> int | None:
        """As `exit_code`, after waiting up to `within` seconds for it."""

    def signal(self, pid: int, number: int) -> None:
        """Send it to a rank and whatever its tests have started, which goes on after the rank has ended."""


class Sources:
    """One session's."""

    def __init__(self, config: pytest.Config, start: str, tell: Callable[[str], None]) -> None:
        self._config, self._start, self._tell = config, start, tell
        self._zygote: ZygoteClient | None = None
        self._spawner: Spawner | None = None
        self._collected: Collected | None = None  # by the first zygote, of all items
        self._items: Sequence[pytest.Item] = ()
        self._forked: Sequence[pytest.Item] = ()  # that the zygote is to collect
        self._spawned: Collection[str] = ()  # files
        self._renewed_in_vain = False  # the zygote has ended, and the next one has not collected yet

    def saw_source(self, source: bytes) -> None:
        """A file that may hold tests on ranks is about to be collected: start the zygote beside it."""
        if self._zygote is None:
            self._zygote = ZygoteClient(self._config)
        self._zygote.preload_for(source)

    def collect(self, items: Sequence[pytest.Item]) -> None:
        """These are the session's tests on ranks."""
        self._items = self._forked = items
        if self._zygote is None:  # a class or a plugin brought the marker, no file mentions it
            self._zygote = ZygoteClient(self._config)
        self._zygote.collect(items)

    def check(self, item: pytest.Item) -> None:
        """Wait until ranks can be started for it. Raises HarnessError where they would not have what this
        process has.
        """
        if self._zygote is None:
            raise HarnessError(f"{item.nodeid} has a ddp marker, but had none when it was collected")
        self._zygote.pump()
        collected = self._zygote.wait_collected()
        self._renewed_in_vain = False
        if self._collected is None:
            self._collected = collected
            self._decide(collected)
        if item.nodeid not in self._collected.items:
            raise HarnessError(_missing(item.nodeid, self._collected.items, self._collected.errors))
        if self._collected.items[item.nodeid] != parameter_digest(item):
            raise HarnessError(_differing(item))

    def renew(self, error: ZygoteEnded) -> None:
        """Start another zygote in place of the one that has ended. Raises `error` where that one was such a
        replacement, and had not come to collect.
        """
        if self._renewed_in_vain or self._zygote is None:
            raise error
        self._renewed_in_vain = True
        self._replace(self._zygote)

    def start_of(self, item: pytest.Item) -> str:
        """How its ranks are started, once it was checked."""
        return "spawn" if self._start == "spawn" or str(item.path) in self._spawned else "fork"

    def get(self, start: str) -> Source:
        """What starts ranks in this way."""
        assert self._zygote is not None, "nothing was checked"
        if start == "fork":
            return self._zygote
        if self._spawner is None:
            mine = [item for item in self._items if self.start_of(item) == start]
            self._spawner = Spawner(self._config, mine)
        return self._spawner

    def close(self) -> None:
        """End all processes."""
        for one in (self._spawner, self._zygote):
            if one is not None:
                one.close()
        self._spawner = self._zygote = None

    def _decide(self, collected: Collected) -> None:
        """Spawn the ranks of modules that start what a fork would lack, and have others forked without it."""
        if not collected.unforkable or self._start == "spawn":
            return
        for file, started in collected.started.items():
            self._tell(
                f"ranks of {self._shown(file)} are spawned, not forked: importing it starts {started}, which "
                "a fork would lack"
            )
        self._spawned = collected.started
        self._forked = [item for item in self._items if str(item.path) not in self._spawned]
        left = collected.unforkable
        if self._spawned and self._forked:
            assert self._zygote is not None
            left = self._replace(self._zygote).wait_collected().unforkable
        if left and self._forked:
            self._tell(
                f"ranks are spawned, not forked: plugins or conftest files start {left} when they are "
                "imported, which a fork would lack"
            )
            self._spawned = dict.fromkeys(str(item.path) for item in self._items)

    def _replace(self, before: ZygoteClient) -> ZygoteClient:
        """Another zygote, for the tests that are to be forked."""
        self._zygote = ZygoteClient(self._config)
        before.close()
        if before.preloaded:
            self._zygote.preload()
        self._zygote.collect(self._forked)
        return self._zygote

    def _shown(self, file: str) -> str:
        try:
            return str(Path(file).relative_to(self._config.invocation_params.dir))
        except ValueError:
            return file


def _differing(item: pytest.Item) -> str:
    told = ", ".join(f"{name}={value!r}" for name, value in parameters(item).items())
    return (
        f"{item.nodeid} has {told} here, but other values in the process that ranks are forked from: "
        "parameters must come out alike in every process, so make no ids from unordered sets"
    )


def _missing(nodeid: str, there: Iterable[str], errors: str) -> str:
    if errors:
        return f"the processes that ranks are forked from could not collect {nodeid}:\n{errors}"
    return (
        f"{nodeid} was collected here, but not by the process that ranks are forked from, which found: "
        + ", ".join(list(there)[:10])
    )
