"""The ranks of a job that runs on one host, watched by one of them: it reads all ledgers itself."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from esper.lockstep.proof.finding import Patience
from esper.lockstep.proof.prove import only_time_decides
from esper.lockstep.report.diagnosis import Diagnosis, Report
from esper.lockstep.run.supervisor import Supervisor
from esper.lockstep.watchdog.localranks import BEAT, LocalRanks
from esper.lockstep.watchdog.requests import ByFile
from esper.lockstep.watchdog.skim import Skim
from esper.lockstep.watchdog.sockets import Endpoint


class HostWatch:
    """This rank's part in it. `look` never waits, but for the stacks that a verdict needs."""

    pause = BEAT  # seconds that may pass until the next look
    ends: Sequence[Endpoint] = ()  # of connections that can't be read here

    def __init__(
        self, folder: Path, ledgers: Path, local: LocalRanks, patience: float, internal: tuple[str, ...]
    ) -> None:
        """`folder`: what the watchdogs of this run tell each other; `ledgers`: where the ledgers lie;
        `internal`: source files in which nobody's line lies.
        """
        self.local, self._patience = local, patience
        self._readers = list(local.readers.values())
        self.supervisor = Supervisor(
            ledgers,
            list(local.pids.values()),
            patience=Patience(patience, patience),
            readers=self._readers,
            internal=internal,
            wake=False,  # or what the others wait in would complete: see `WatchThread._continue_stopped`
            show=None,
            requests=ByFile(folder, local.rank, local.pids, local.beats),
            gap=math.inf,  # it is not polled while all is well; and what it was away for is in the patience
        )
        self.supervisor.view.holds_back = True
        self._skim = Skim(self._readers, self.supervisor.view)
        self._positions: list[int] = []
        self.saw_an_end = False  # of a process, in the last look

    def look(self) -> Diagnosis | None:
        """One look at the others; what came of it, if this rank leads."""
        now = time.monotonic()
        self.saw_an_end = self.local.look(now, self.supervisor.ended)
        leads = self.local.leads(now)
        if not leads and not self.local.fall_behind():
            return None
        judged = self._skim.pass_over()
        if not leads:
            if not judged:  # or it would never come to know the groups, and look at all again each time
                self.supervisor.read()
            return None
        before, self._positions = self._positions, [reader.written() for reader in self._readers]
        moving = len(before) == len(self._positions) and all(
            now_at > then for now_at, then in zip(self._positions, before, strict=True)
        )
        healthy = judged and moving and only_time_decides(self.supervisor.view)
        if healthy:
            self.supervisor.remember(now)
            return None
        seconds = self._patience + self.local.gaps(now, self._patience)
        self.supervisor.patience = Patience(seconds, seconds)
        self._skim.read_last()
        return self.supervisor.poll()

    @property
    def broken(self) -> str | None:
        """The traceback of a failure of our own: nothing is found any more."""
        return self.supervisor.broken

    def report(self) -> Report:
        """What was found."""
        return self.supervisor.report("diverged")

    def leave(self) -> None:
        """This rank's program is over."""
