"""What a host judges by itself, once the job's store does not answer any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from esper.lockstep.proof.finding import SUSPECTED, Finding
from esper.lockstep.record.manifest import Manifest
from esper.lockstep.report.diagnosis import Report
from esper.lockstep.watchdog.hosts.board import Question
from esper.lockstep.watchdog.hosts.judging import Evidence, judge, same
from esper.lockstep.watchdog.hosts.parcel import Parcel


class Alone:
    """Whom the other hosts' ranks keep waiting is late for them, whatever they do: nothing is heard of it."""

    def __init__(self, own: int, hosts: Sequence[Sequence[int]], manifest: Manifest, folder: Path) -> None:
        self._own, self._hosts, self._manifest, self._folder = own, hosts, manifest, folder
        self._lost: float | None = None
        self._found: Finding | None = None
        self._count = 0

    def heard(self) -> None:
        """The store has answered."""
        self._lost = self._found = None

    def look(
        self, now: float, longest: float, patience: float, mine: Callable[[Question, float], Parcel]
    ) -> Report | None:
        """The verdict, once a wait of `longest` seconds is too long."""
        self._lost = now if self._lost is None else self._lost
        if longest < patience or now - self._lost < patience:
            return None
        self._count += 1
        lines = () if self._found is None else tuple(self._found.guilty)
        own = mine(Question(f"alone.{self._count}", lines, 1 << 12), now)
        silent = {host: self._lost for host in range(len(self._hosts)) if host != self._own}
        found = judge(
            Evidence({self._own: own}, silent, {self._own: 0.0}),
            now=now,
            manifest=self._manifest,
            hosts=self._hosts,
            folder=self._folder,
            patience=patience,
            starved=lambda rank, since: 0.0,
            why="; the job's store does not answer",
        )
        before, self._found = self._found, None if found is None else found[0]
        if found is None or before is None or found[0].kind not in SUSPECTED or not same(before, found[0]):
            return None
        return found[1]
