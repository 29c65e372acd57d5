"""N ranks, and one test at a time on them."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import pytest

from esper.lockstep.record.reader import LedgerReader
from pytest_esper_ddp.controller.captured import Captured
from pytest_esper_ddp.controller.coverage import measured
from pytest_esper_ddp.controller.deadlines import Deadline
from pytest_esper_ddp.controller.key import WorldKey
from pytest_esper_ddp.controller.leaving import cut_off, left_by_themselves, lost_ranks
from pytest_esper_ddp.controller.run import Run
from pytest_esper_ddp.controller.rundir import RunDirectory
from pytest_esper_ddp.controller.sources import Source
from pytest_esper_ddp.controller.store import Store
from pytest_esper_ddp.controller.terminal import TerminalDesk
from pytest_esper_ddp.controller.watch import Watch
from pytest_esper_ddp.errors import HarnessError
from pytest_esper_ddp.scenario import Scenario
from pytest_esper_ddp.wire.channel import Closed, Inbox, receive, send, send_whole, whole
from pytest_esper_ddp.wire.messages import (
    Broken,
    Debugger,
    EndWorld,
    Finalised,
    ForkWorld,
    RunTest,
    Up,
)

_UP_WITHIN = 60.0
_SOFT_END = 1.0
_FINALISED_WITHIN = 5.0
_TERM_TO_KILL = 0.05
_TERM_TO_KILL_MEASURED = 2.0  # what it has executed is to be written first
_numbers = count(1)


class World:
    """Ranks that live on from test to test until something spoils them."""

    def __init__(
        self,
        source: Source,
        key: WorldKey,
        base: RunDirectory,
        base_temp: Path,
        seed: int,
        store: Store,
        debugger: Debugger,
    ) -> None:
        """`store` is this world's alone where the group is left to its test; what coverage finds stays in
        `base`.
        """
        number = next(_numbers)
        self.key, self.source, self._store = key, source, store
        self._base = base
        self.run_dir = base.path / f"world{number}"
        self.run_dir.mkdir(mode=0o700)
        pairs = [socket.socketpair() for _ in range(key.world_size)]
        self.channels = [ours for ours, _ in pairs]
        self.inboxes = [Inbox(channel) for channel in self.channels]
        self.captured = Captured()
        request = ForkWorld(
            number=number,
            world_size=key.world_size,
            run_dir=self.run_dir,
            base_temp=base_temp / f"world{number}",
            backend=key.backend,
            init=key.init,
            lockstep=key.lockstep,
            seed=seed,
            lasting=not key.once,
            store_port=store.port,
            measured=measured(base.path),
            debugger=debugger,
        )
        self._shared = str(request.shared_path)
        self._term_to_kill = _TERM_TO_KILL if request.measured is None else _TERM_TO_KILL_MEASURED
        try:
            self.pids = source.start(request, [theirs for _, theirs in pairs])
        finally:
            for _, theirs in pairs:
                theirs.close()
        for rank, channel in enumerate(self.channels):
            for message in source.first_words(request, rank):
                with suppress(Closed):  # `wait_up` says so
                    send(channel, message)
        base.watch(self.pids)
        self._readers = [LedgerReader(self.run_dir, rank) for rank in range(key.world_size)]
        self._tests = count(1)
        self.last: pytest.Item | None = None  # that has run here
        self._up = self._dismissed = False

    def wait_up(self) -> None:
        """Wait until every rank is in its group. Raises HarnessError naming the rank that is not."""
        if self._up:
            return
        end = time.monotonic() + _UP_WITHIN
        with selectors.DefaultSelector() as waiting:
            for rank, channel in enumerate(self.channels):
                waiting.register(channel, selectors.EVENT_READ, rank)
            while ranks := [key.data for key in waiting.get_map().values()]:
                ready = waiting.select(max(0.0, end - time.monotonic()))
                if not ready:
                    raise self._not_up(min(ranks), f"is not in its group after {_UP_WITHIN:g} s")
                for key, _ in ready:
                    self._hear_up(key.data, end)
                    waiting.unregister(key.fileobj)
        self._up = True

    def _hear_up(self, rank: int, end: float) -> None:
        channel = self.channels[rank]
        channel.settimeout(max(0.01, end - time.monotonic()))
        try:
            message = receive(channel)
            if isinstance(message, Up):
                self.captured.receive(rank, channel, message.captured)
        except (Closed, TimeoutError) as error:
            code = self.source.wait_exit(self.pids[rank], 1.0)
            raise self._not_up(rank, "said nothing" if code is None else f"ended with {code}") from error
        channel.settimeout(None)
        if isinstance(message, Broken):
            raise self._not_up(rank, f"could not start: {message.reason}")
        assert isinstance(message, Up)

    def _not_up(self, rank: int, why: str) -> HarnessError:
        return HarnessError(f"rank {rank} of {self.key.world_size} {why}")

    def run(
        self,
        nodeid: str,
        next_nodeid: str | None,
        scenario: Scenario,
        deadline: Deadline,
        terminal: TerminalDesk,
    ) -> Run:
        """Run one item on every rank until all have reported, one has been judged, or time is up."""
        self.wait_up()
        name = f"{next(self._tests)} {nodeid}"
        judged = scenario.lockstep == "enforce"
        order = whole(RunTest(nodeid, next_nodeid, name, scenario.faults, judged))
        if os.path.lexists(self._shared):  # a test that asks for it makes it
            shutil.rmtree(self._shared, ignore_errors=True)
        started = time.monotonic()
        for channel in self.channels:
            with suppress(Closed):  # it died between tests: its exit says so
                send_whole(channel, order)
        # Later than that: to make what watches the ranks takes 20 us, and they are at it meanwhile.
        test = Watch(self, name, scenario, deadline, terminal, started)
        for rank, channel in enumerate(self.channels):
            test.selector.register(channel, selectors.EVENT_READ, rank)
        with test.selector, closing(terminal):
            return test.watch()

    def end(self, *, soft: bool) -> Mapping[int, Finalised]:
        """End every rank, and what tests have started and left; `soft` lets ranks finalise their fixtures
        first, and what came of that is returned.
        """
        ends: dict[int, Finalised] = {}
        with suppress(HarnessError):  # without the zygote there are no ranks any more
            # Ranks that have run nothing, since they started ahead of a test, have nothing to finalise.
            if not (soft and self._up and self._ended_by_themselves(ends)):
                self._kill()
        for pid in self.pids:
            self.source.signal(pid, signal.SIGKILL)
        self._base.forget(self.pids)
        for reader in self._readers:
            reader.close()
        for channel in self.channels:
            channel.close()
        self.captured.close()
        if not self.key.init:
            self._store.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return ends

    def dismiss(self) -> None:
        """Tell the ranks to finalise their fixtures and leave; `end` waits for them."""
        if not self._dismissed:
            self._dismissed = True
            for channel in self.channels:
                with suppress(Closed):
                    send(channel, EndWorld())

    def _ended_by_themselves(self, ends: dict[int, Finalised]) -> bool:
        self.dismiss()
        end = time.monotonic() + _FINALISED_WITHIN
        for rank, channel in enumerate(self.channels):
            channel.settimeout(max(0.01, end - time.monotonic()))
            try:
                ends[rank] = receive(channel)
            except TimeoutError:
                ends[rank] = cut_off(f"its fixtures were not finalised within {_FINALISED_WITHIN:g} s")
            except Closed:
                code = self.source.wait_exit(self.pids[rank], _SOFT_END)
                ends[rank] = cut_off(f"ended with {code} while its fixtures were finalised")
        return left_by_themselves(self.source, self.pids, ends, _SOFT_END)

    def lost(self) -> Mapping[int, Finalised]:
        """Ranks that have ended since the last test here."""
        return {} if self.last is None else lost_ranks(self.source, self.pids, self.channels)

    def _kill(self) -> None:
        for number, within in (
            (signal.SIGCONT, 0.0),
            (signal.SIGTERM, self._term_to_kill),
            (signal.SIGKILL, _SOFT_END),
        ):
            end = time.monotonic() + within
            alive = [pid for pid in self.pids if self.source.exit_code(pid) is None]
            for pid in alive:
                self.source.signal(pid, number)
            for pid in alive:
                self.source.wait_exit(pid, max(0.0, end - time.monotonic()))

    @property
    def readers(self) -> list[LedgerReader]:
        """The ranks' ledgers."""
        return self._readers
