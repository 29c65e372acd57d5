"""N ranks, and one test at a time on them."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from esper.lockstep.frames import INTERNAL
from esper.lockstep.proof.finding import SUSPECTED, Patience
from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.report.diagnosis import short_site
from esper.lockstep.run.evidence import current_line
from esper.lockstep.run.process import kept_waiting
from esper.lockstep.run.supervisor import Supervisor
from pytest_esper_ddp.controller.captured import Captured
from pytest_esper_ddp.controller.coverage import measured
from pytest_esper_ddp.controller.deadlines import Deadline
from pytest_esper_ddp.controller.key import WorldKey
from pytest_esper_ddp.controller.leaving import cut_off, left_by_themselves, lost_ranks
from pytest_esper_ddp.controller.run import Run, uneven
from pytest_esper_ddp.controller.rundir import RunDirectory
from pytest_esper_ddp.controller.sources import Source
from pytest_esper_ddp.controller.store import Store
from pytest_esper_ddp.errors import HarnessError
from pytest_esper_ddp.faults import FILES
from pytest_esper_ddp.markers import BY_PROGRAM
from pytest_esper_ddp.scenario import Scenario
from pytest_esper_ddp.wire.channel import Closed, Inbox, Unreadable, receive, send
from pytest_esper_ddp.wire.messages import (
    Broken,
    Early,
    EndWorld,
    Finalised,
    ForkWorld,
    Outcome,
    RunTest,
    Up,
)

_POLL = 0.004
_UP_WITHIN = 60.0
# How long ranks may take for reports of their own once one has failed or a verdict stands.
_GRACE = 0.5
_AFTER_VERDICT = 0.1
_SOFT_END = 1.0
_FINALISED_WITHIN = 5.0
_TERM_TO_KILL = 0.05
_TERM_TO_KILL_MEASURED = 2.0  # what it has executed is to be written first
_STOPPED_PATIENCE = 0.5
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
        self._channels = [ours for ours, _ in pairs]
        self.inboxes = [Inbox(channel) for channel in self._channels]
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
        )
        self._term_to_kill = _TERM_TO_KILL if request.measured is None else _TERM_TO_KILL_MEASURED
        try:
            self.pids = source.start(request, [theirs for _, theirs in pairs])
        finally:
            for _, theirs in pairs:
                theirs.close()
        for rank, channel in enumerate(self._channels):
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
            for rank, channel in enumerate(self._channels):
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
        channel = self._channels[rank]
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

    def run(self, nodeid: str, next_nodeid: str | None, scenario: Scenario, deadline: Deadline) -> Run:
        """Run one item on every rank until all have reported, one has been judged, or time is up."""
        self.wait_up()
        test = _Test(self, f"{next(self._tests)} {nodeid}", scenario, deadline)
        shared = self.run_dir / "shared"
        shutil.rmtree(shared, ignore_errors=True)
        shared.mkdir()
        for rank, channel in enumerate(self._channels):
            order = RunTest(nodeid, next_nodeid, test.name, scenario.faults, shared)
            with suppress(Closed):  # it died between tests: its exit says so
                send(channel, order)
            test.selector.register(channel, selectors.EVENT_READ, rank)
        with test.selector:
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
            # A group's number is not given again while it has members.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._base.forget(self.pids)
        for reader in self._readers:
            reader.close()
        for channel in self._channels:
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
            for channel in self._channels:
                with suppress(Closed):
                    send(channel, EndWorld())

    def _ended_by_themselves(self, ends: dict[int, Finalised]) -> bool:
        self.dismiss()
        end = time.monotonic() + _FINALISED_WITHIN
        for rank, channel in enumerate(self._channels):
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
        return {} if self.last is None else lost_ranks(self.source, self.pids, self._channels)

    def _kill(self) -> None:
        for number, within in (
            (signal.SIGCONT, 0.0),
            (signal.SIGTERM, self._term_to_kill),
            (signal.SIGKILL, _SOFT_END),
        ):
            end = time.monotonic() + within
            alive = [pid for pid in self.pids if self.source.exit_code(pid) is None]
            for pid in alive:
                # The rank leads a process group, which holds whatever the test has started.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, number)
            for pid in alive:
                self.source.wait_exit(pid, max(0.0, end - time.monotonic()))

    @property
    def readers(self) -> list[LedgerReader]:
        """The ranks' ledgers."""
        return self._readers


class _Test:
    """The watch over one run."""

    def __init__(self, world: World, name: str, scenario: Scenario, deadline: Deadline) -> None:
        self.world, self.name, self.scenario = world, name, scenario
        self.selector = selectors.DefaultSelector()
        self.result = Run(started=time.monotonic(), shortened=deadline.note)
        self.deadline = self.result.started + deadline.seconds
        self.act_at: float | None = None
        self.kept: dict[int, float] = {}  # then, by rank: how long each had been kept from a processor
        self.pending = set(range(world.key.world_size))
        self.early: dict[int, list[Early]] = {}
        self.supervisor = Supervisor(
            world.run_dir,
            world.pids,
            patience=Patience(scenario.patience, min(scenario.patience, _STOPPED_PATIENCE)),
            readers=world.readers,
            begun=name,
            internal=INTERNAL + FILES,
            wake=scenario.lockstep == "enforce",
        )
        self.selector.register(world.source.channel, selectors.EVENT_READ, None)

    def watch(self) -> Run:
        result, supervisor = self.result, self.supervisor
        watched, enforced = self.scenario.lockstep != "off", self.scenario.lockstep == "enforce"
        look_at = result.started + _POLL  # not at each rank's report: usual tests are over before the first
        while self.pending:
            for key, _ in self.selector.select(_POLL):
                if key.data is None:
                    self.world.source.pump()
                else:
                    self._hear(key.data)
            self._bury()
            now = time.monotonic()
            if watched and self.pending and now >= look_at:
                if supervisor.poll() is not None and enforced:
                    self._act_within(_AFTER_VERDICT, "verdict")
                look_at = time.monotonic() + _POLL
            if now >= self.deadline:
                result.why_ended = "timeout"
                break
            if self.act_at is not None and now >= self.act_at and now >= self.act_at + self._starved():
                break
        else:
            result.why_ended = None
        self._conclude()
        return result

    def _hear(self, rank: int, *, last: bool = False) -> None:
        try:
            messages = self.world.inboxes[rank].take(last=last)
        except Closed:
            self.selector.unregister(self.world._channels[rank])
            return  # its exit is on its way from the zygote
        for message in messages:
            match message:
                case Early():
                    self.early.setdefault(rank, []).append(message)
                case Unreadable(reason):
                    told = f"what it reports can't be read here: {reason}"
                    self._take(rank, Outcome((), None, {}, (), error=told))
                case _:
                    self._take(rank, message)

    def _take(self, rank: int, message: Outcome) -> None:
        self.result.outcomes[rank] = message
        self.pending.discard(rank)
        failure = message.failure
        if (failure is not None or message.error is not None) and self._ends_it(
            rank, named=failure is not None and bool(failure.guilty)
        ):
            self._act_within(_GRACE, "grace")

    def _bury(self) -> None:
        """Note the ranks that have ended; what they had still sent is heard first."""
        for rank, pid in enumerate(self.world.pids):
            code = self.world.source.exit_code(pid)
            if code is None or rank in self.result.exits:
                continue
            channel = self.world._channels[rank]
            if rank in self.pending and channel in self.selector.get_map():
                self._hear(rank, last=True)
            self.result.exits[rank] = code
            self.pending.discard(rank)
            self.supervisor.ended(rank, code)
            if self._ends_it(rank, named=False):
                self._act_within(_GRACE, "grace")

    def _ends_it(self, rank: int, *, named: bool) -> bool:
        """Whether the failure of this rank is the end, and not what the others are to find out for
        themselves in their own time.
        """
        expected = self.scenario.expectation
        if expected is None or expected.kind not in BY_PROGRAM:
            return True
        return named or (expected.guilty is not None and rank not in expected.guilty)

    def _act_within(self, seconds: float, why: str) -> None:
        at = time.monotonic() + seconds
        if self.act_at is None or at < self.act_at:
            self.act_at, self.result.why_ended = at, why
            self.kept = {rank: kept_waiting(self.world.pids[rank]) for rank in self.pending}

    def _starved(self) -> float:
        """The most seconds for which a rank that may still report has had no processor since."""
        pids = self.world.pids
        return max((kept_waiting(pids[rank]) - self.kept[rank] for rank in self.pending), default=0.0)

    def _conclude(self) -> None:
        result, supervisor = self.result, self.supervisor
        result.uneven = uneven(result.outcomes)
        troubled = (
            result.uneven or result.exits or self.pending or any(o.failure for o in result.outcomes.values())
        )
        if troubled and self.scenario.lockstep != "off":
            supervisor.poll(final=not self.pending)
        supervisor.read()
        result.diagnosis, result.decided_at = supervisor.diagnosis, supervisor.decided_at
        result.broken = supervisor.broken
        if self._came_right():
            result.diagnosis = None
        for rank in sorted(self.pending):
            where, site = current_line(
                self.world.pids[rank], stack_path(self.world.run_dir, rank), INTERNAL + FILES, within=0.2
            )
            result.unfinished[rank] = f"{where} at {short_site(site)}"
        for seen in supervisor.view.ranks:
            for entry in seen.faults:
                result.fired[entry.detail["index"]] = entry.issued
        self._save_what_was_said()
        result.ended = time.monotonic()

    def _save_what_was_said(self) -> None:
        """Of ranks that came to no outcome: the reports that they had sent ahead, and what they printed."""
        result = self.result
        for rank in result.exits.keys() | self.pending:
            if rank not in result.outcomes and (early := self.early.get(rank)):
                failure = next((one.failure for one in early if one.failure is not None), None)
                reports = tuple(one.report for one in early)
                result.outcomes[rank] = Outcome(reports, failure, groups={}, fired=())
            if printed := self.world.captured.printed(rank):
                result.printed[rank] = printed

    def _came_right(self) -> bool:
        """Whether a suspicion, which an observed run outlives, was none: every rank has ended well since."""
        result = self.result
        suspected = result.diagnosis is not None and result.diagnosis.kind in SUSPECTED
        ended_well = not (
            self.pending or result.exits or any(one.failure or one.error for one in result.outcomes.values())
        )
        return suspected and ended_well and self.scenario.expectation is None
