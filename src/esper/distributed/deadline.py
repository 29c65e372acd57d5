"""What happens when a rank does not come to an exchange in time: who is missing, said alike by all who came.

An exchange is waited for in slices. The first rank whose deadline passes calls the exchange off in the job's
store; the others see that within `POLL` seconds, so that all who are there enter `monitored_barrier`
together, and a rank that merely came later is not named. Each says in the store that it is there, and the
first report written there, rank 0's if rank 0 came, is the one that all of them raise.

No exchange touches the store unless more than half a deadline has passed since this rank entered the one
before. That is safe: no rank can begin to wait before all have entered the previous exchange, so none can
give up within a whole deadline of that. The other half is the margin for an exchange that is complete on one
rank and not yet on another.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from esper.distributed.board import Board
from esper.distributed.divergence import ranks_text
from esper.errors import AgreementDeadline
from esper.lockstep import ask, awaiting

# How long a slice is; also how soon Ctrl-C is answered, since Python runs no signal handler inside a wait.
POLL = 0.02
_SLICE = timedelta(seconds=POLL)
# A rank other than 0 waits in monitored_barrier for its group's time-out, whatever it passes.
DIAGNOSIS = 0.3
# How long the others wait for rank 0's report after their own barrier failed.
REPORT = 0.1
# How long lockstep's answer is waited for after the barrier, in whose time it should have come.
ANSWER = 0.05

# What monitored_barrier says on rank 0, by ranks of its group.
_FAILED = re.compile(r"Ranks ([\d, ]+) failed")
_HELD, _CALLED_OFF = "held", "called off"


@dataclass(frozen=True, slots=True)
class Report:
    """What the ranks that came found out; ranks are global."""

    where: str  # which exchange
    seconds: float  # the deadline
    world_size: int
    missing: tuple[int, ...]
    late: tuple[int, ...]  # came after the exchange was called off
    barrier: str  # what monitored_barrier said to the writer, "" if it passed
    store_silent: bool = False  # then nobody knows who came
    lockstep: str = ""  # its sentence, where the job runs under it and there is one

    def error(self) -> AgreementDeadline:
        """The error that every rank raises, with the same text."""
        return AgreementDeadline(self._message(), guilty=self.missing or self.late)

    def _message(self) -> str:
        lines = [f"{self.where} was called off after {self.seconds:g} s: {self._who()}"]
        if self.late and self.missing:
            lines.append(f"{ranks_text(self.late)} came after that")
        if self.barrier:
            lines.append(f"monitored_barrier: {self.barrier}")
        if self.lockstep:
            lines.append(f"lockstep: {self.lockstep}")
        return "\n".join(lines)

    def _who(self) -> str:
        if self.store_silent:
            where = "it lives with rank 0 or the launcher"
            return f"the job's store does not answer ({where}), so who came is unknown"
        if self.missing:
            return f"{ranks_text(self.missing)} of {self.world_size} did not come"
        if self.late:
            return f"{ranks_text(self.late)} of {self.world_size} came only after that"
        return "every rank came, but the exchange did not complete"


class Deadline:
    """Waits for the operations of one control group, in order, each for at most `seconds`."""

    def __init__(
        self,
        ranks: Sequence[int],
        rank: int,
        diagnostic: dist.ProcessGroup,
        board: Board,
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ranks` are the group's global ranks in group order, `rank` this process's global rank."""
        self._ranks, self._rank = tuple(ranks), rank
        self._diagnostic, self._board = diagnostic, board
        self._seconds, self._clock = seconds, clock
        self._entered = clock()
        self._round = 0
        self._answer: Callable[[float], str | None] = lambda within: None
        self.called_off = False  # this rank has given up on an operation, which is still under way

    def wait(self, work: dist.Work, where: str) -> None:
        """Collective: every rank, same order. Returns when `work` is done.

        Raises AgreementDeadline, the same on every rank that is here, within 0.5 s of the first deadline that
        passes; a rank that comes later raises it at once. An error of the operation itself is raised as it
        is.
        """
        begun = self._clock()
        quiet_until = self._entered + self._seconds / 2
        self._entered = begun
        self._round += 1
        if begun >= quiet_until and self._called_off():
            self._give_up(where, late=True)
        try:
            with awaiting(work):
                self._complete(work, begun + self._seconds, quiet_until)
        except _CalledOffError:
            self._give_up(where, late=False)

    def muster(self, arrival: dist.Work | None, where: str) -> None:
        """Collective: every rank, same order. Waits for `arrival`, then runs `monitored_barrier`, before an
        exchange.

        The barrier comes second because ranks that enter it at different times name the wrong one. Raises as
        `wait`.
        """
        assert arrival is not None
        self.wait(arrival, where)
        if self._barrier():
            self._round += 1
            self._board.settle(self._key("verdict"), _CALLED_OFF)
            self._give_up(where, late=False)

    def _complete(self, work: dist.Work, until: float, quiet_until: float) -> None:
        """Return when the operation got done, by a verdict that is the same on every rank.

        Raises _CalledOffError otherwise.
        """
        now, announced = until - self._seconds, False
        while True:
            done = _done_within(work, until - now)
            now = self._clock()
            if done:
                if now < quiet_until or self._board.settle(self._key("verdict"), _HELD) != _CALLED_OFF:
                    return
                raise _CalledOffError
            if now >= until:
                if self._board.settle(self._key("verdict"), _CALLED_OFF) != _HELD:
                    self._ask()
                    raise _CalledOffError
                # Another rank has it complete, so it is about to be complete here.
                until = float("inf")
            elif now >= quiet_until:
                if not announced:
                    # Long before anybody asks who came: one that has no processor then is not missing.
                    self._announce("waiting")
                    announced = True
                if self._called_off():
                    self._ask()
                    raise _CalledOffError

    def _ask(self) -> None:
        # Half the deadline: who has called the exchange off has waited for all of it, others came later.
        self._answer = ask(self._seconds / 2)

    def _announce(self, how: str) -> None:
        self._board.settle(self._key(f"here/{self._rank}"), how)

    def _called_off(self) -> bool:
        return self._board.read(self._key("verdict")) == _CALLED_OFF

    def _give_up(self, where: str, late: bool) -> NoReturn:
        self.called_off = True
        self._announce("late" if late else "waiting")
        report = self._board.read(self._key("report"))
        if report is None:
            barrier = self._barrier()
            if self._rank != self._ranks[0] and self._board.read(self._key(f"here/{self._ranks[0]}")):
                report = self._await_report()
            report = report or self._settle_report(where, barrier)
        fields = json.loads(report)
        fields["missing"], fields["late"] = tuple(fields["missing"]), tuple(fields["late"])
        raise Report(**fields).error()

    def _barrier(self) -> str:
        try:
            dist.monitored_barrier(
                self._diagnostic, timeout=timedelta(seconds=DIAGNOSIS), wait_all_ranks=True
            )
        except RuntimeError as error:
            return str(error).partition("\n")[0].strip()
        return ""

    def _await_report(self) -> str | None:
        until = self._clock() + REPORT
        while (report := self._board.read(self._key("report"))) is None and self._clock() < until:
            time.sleep(POLL / 4)
        return report

    def _settle_report(self, where: str, barrier: str) -> str:
        before = self._board.unanswered
        answers = {rank: self._board.read(self._key(f"here/{rank}")) for rank in self._ranks}
        silent = self._board.unanswered > before
        passed = self._passed(barrier)
        mine = Report(
            where=where,
            seconds=self._seconds,
            world_size=len(self._ranks),
            missing=()
            if silent
            else tuple(rank for rank in self._ranks if answers[rank] is None and rank not in passed),
            late=tuple(rank for rank in self._ranks if answers[rank] == "late"),
            barrier=barrier,
            store_silent=silent,
            lockstep=self._answer(ANSWER) or "",
        )
        text = json.dumps(asdict(mine))
        return self._board.settle(self._key("report"), text) or text

    def _passed(self, barrier: str) -> frozenset[int]:
        """The ranks that the barrier has seen: the word of one that waits for a processor may come later."""
        found = _FAILED.search(barrier)
        if found is None or self._rank != self._ranks[0]:
            return frozenset()
        failed = {int(rank) for rank in found[1].split(",")}
        return frozenset(rank for at, rank in enumerate(self._ranks) if at not in failed)

    def _key(self, name: str) -> str:
        return f"{self._round}/{name}"


class _CalledOffError(Exception):
    """Leaves a wait, which has failed then and is not over."""


def _done_within(work: dist.Work, seconds: float) -> bool:
    """Whether `work` was done after `seconds`, or after a slice, whichever is shorter."""
    # A wait that times out leaves the operation under way, and it may still complete. A time-out of 0 would
    # mean none at all.
    try:
        work.wait(_SLICE if seconds >= POLL else timedelta(seconds=max(seconds, 0.001)))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # done in the meantime: raises the operation's own error, if it had one
    return True
