"""The watch over one test's run on the ranks of a world."""

from __future__ import annotations

import selectors
import time
from typing import TYPE_CHECKING

from esper.lockstep.frames import INTERNAL
from esper.lockstep.proof.finding import SUSPECTED, Patience
from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.report.diagnosis import short_site
from esper.lockstep.run.evidence import current_line
from esper.lockstep.run.process import kept_waiting
from esper.lockstep.run.supervisor import Supervisor
from pytest_esper_ddp.controller.crash import stacks_at_the_end
from pytest_esper_ddp.controller.deadlines import Deadline
from pytest_esper_ddp.controller.run import Run, uneven
from pytest_esper_ddp.controller.terminal import TerminalDesk
from pytest_esper_ddp.faults import FILES
from pytest_esper_ddp.markers import BY_PROGRAM
from pytest_esper_ddp.scenario import Scenario
from pytest_esper_ddp.wire.channel import Closed, Unreadable
from pytest_esper_ddp.wire.messages import AsksForTerminal, Early, LeavesTerminal, Outcome

if TYPE_CHECKING:
    from pytest_esper_ddp.controller.world import World

# The first look takes 2 ms of a processor from the ranks: it reads all there is. Most tests are over before.
_FIRST_LOOK = 0.03
# How long ranks may take for reports of their own once one has failed or a verdict stands.
_GRACE = 0.5
# Those of ranks that watch themselves look twice a second, and wait for each other for another.
_GRACE_OF_WATCHDOGS = 2.5
# And for the report of an error that the rank is known to have raised by then, which pytest is showing.
_SHOWN_WITHIN = 5.0
_AFTER_VERDICT = 0.1
_STOPPED_PATIENCE = 0.5


class Watch:
    """The watch over one run."""

    def __init__(
        self,
        world: World,
        name: str,
        scenario: Scenario,
        deadline: Deadline,
        terminal: TerminalDesk,
        started: float,
    ) -> None:
        """`started`: when the ranks were told to run it, CLOCK_MONOTONIC seconds."""
        self.world, self.name, self.scenario, self.terminal = world, name, scenario, terminal
        self.selector = selectors.DefaultSelector()
        self.result = Run(started=started, shortened=deadline.note)
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
        enforced = self.scenario.lockstep == "enforce"
        look_at = result.started + _FIRST_LOOK
        while self.pending:
            for key, _ in self.selector.select(supervisor.next_poll):
                if key.data is None:
                    self.world.source.pump()
                else:
                    self._hear(key.data)
            self._bury()
            if self.terminal.holder is not None:
                continue
            now = time.monotonic()
            if self._judged and self.pending and now >= look_at:
                if supervisor.poll() is not None and enforced:
                    self._act_within(_AFTER_VERDICT, "verdict")
                look_at = time.monotonic() + supervisor.next_poll
            if now >= self.deadline:
                result.why_ended = "timeout"
                break
            if self.act_at is not None and now >= self.act_at and not self._reports_soon(self.act_at, now):
                break
        else:
            result.why_ended = None
        self._conclude()
        return result

    def _hear(self, rank: int, *, last: bool = False) -> None:
        try:
            messages = self.world.inboxes[rank].take(last=last)
        except Closed:
            self.selector.unregister(self.world.channels[rank])
            return  # its exit is on its way from the zygote
        for message in messages:
            match message:
                case AsksForTerminal(post_mortem):
                    pid, channel = self.world.pids[rank], self.world.channels[rank]
                    self.terminal.ask(rank, pid, channel, post_mortem=post_mortem)
                case LeavesTerminal():
                    self._leave_terminal(rank)
                case Early():
                    self.early.setdefault(rank, []).append(message)
                    if self.act_at is not None and self.result.why_ended == "grace" and message.failure:
                        # Waited for beyond that, it has the same time for its teardown.
                        self.act_at = max(self.act_at, time.monotonic() + self._grace)
                case Unreadable(reason):
                    told = f"what it reports can't be read here: {reason}"
                    self._take(rank, Outcome((), None, {}, (), error=told))
                case _:
                    self._take(rank, message)

    def _leave_terminal(self, rank: int) -> None:
        stood = self.terminal.leave(rank)
        self.deadline += stood
        if self.act_at is not None:
            self.act_at += stood

    @property
    def _judged(self) -> bool:
        """Whether lockstep is asked: who was kept waiting by a debugger is not late."""
        return self.scenario.lockstep != "off" and not self.terminal.used

    def _take(self, rank: int, message: Outcome) -> None:
        self.result.outcomes[rank] = message
        self.pending.discard(rank)
        failure = message.failure
        if (failure is not None or message.error is not None) and self._ends_it(
            rank, named=failure is not None and bool(failure.guilty)
        ):
            self._act_within(self._grace, "grace")

    @property
    def _grace(self) -> float:
        expected = self.scenario.expectation
        return _GRACE_OF_WATCHDOGS if expected is not None and expected.kind == "watchdog" else _GRACE

    def _bury(self) -> None:
        """Note the ranks that have ended; what they had still sent is heard first."""
        for rank, pid in enumerate(self.world.pids):
            code = self.world.source.exit_code(pid)
            if code is None or rank in self.result.exits:
                continue
            channel = self.world.channels[rank]
            if rank in self.pending and channel in self.selector.get_map():
                self._hear(rank, last=True)
            self.result.exits[rank] = code
            self.pending.discard(rank)
            self._leave_terminal(rank)
            self.supervisor.ended(rank, code)
            if self._ends_it(rank, named=False):
                self._act_within(self._grace, "grace")

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

    def _reports_soon(self, act_at: float, now: float) -> bool:
        """Whether a rank that has not reported is still waited for, though the others' time is over."""
        if now < act_at + self._starved():
            return True
        return self.result.why_ended == "grace" and now < act_at + _SHOWN_WITHIN and self._is_shown()

    def _is_shown(self) -> bool:
        """Whether a rank has raised an error of which nothing has come: pytest may take long to show it."""
        if self.scenario.lockstep == "off":
            return False
        self.supervisor.read()
        told = {rank for rank, early in self.early.items() if any(one.failure for one in early)}
        ranks = self.supervisor.view.ranks
        return any(ranks[rank].raised is not None for rank in self.pending - told)

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
        if troubled and self._judged:
            supervisor.poll(final=not self.pending)
        if troubled or self.scenario.faults:
            supervisor.read()
        else:  # nothing that the ledgers say of this test is asked for any more
            supervisor.pass_over()
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
            printed = self.world.captured.printed(rank)
            if result.exits.get(rank, 0) < 0:
                printed += stacks_at_the_end(self.world.run_dir, rank)
            if printed:
                result.printed[rank] = printed

    def _came_right(self) -> bool:
        """Whether a suspicion, which an observed run outlives, was none: every rank has ended well since."""
        result = self.result
        suspected = result.diagnosis is not None and result.diagnosis.kind in SUSPECTED
        ended_well = not (
            self.pending or result.exits or any(one.failure or one.error for one in result.outcomes.values())
        )
        return suspected and ended_well and self.scenario.expectation is None
