"""One question to all hosts at a time, and their answers as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from esper.lockstep.watchdog.hosts.board import Board, Question
from esper.lockstep.watchdog.hosts.clocks import Clocks
from esper.lockstep.watchdog.hosts.judging import Evidence
from esper.lockstep.watchdog.hosts.lost import Lost
from esper.lockstep.watchdog.hosts.parcel import Parcel
from esper.lockstep.watchdog.hosts.told import Told

# Seconds after which a host that has told of a failure is judged by what it told then.
_DIES = 0.4


class Asking:
    """By the host that leads. Every method raises RuntimeError where the store does not answer."""

    def __init__(self, board: Board, rank: int, hosts: int, told: Told, lost: Lost) -> None:
        """`rank`: who speaks for this host; another one's questions are others."""
        self._board, self._rank, self._hosts, self._told, self._lost = board, rank, hosts, told, lost
        self._clocks = Clocks()
        self._count = 0
        self._asked_at = 0.0
        self._parcels: dict[int, Parcel] = {}
        self._stale: set[int] = set()  # the hosts whose parcel is older than the question
        self.question: Question | None = None  # whose answers are awaited

    def ask(self, now: float, *, lines: Collection[int] = (), records: int) -> None:
        """Ask for the ends of ledgers, and for the lines of those ranks."""
        self._count += 1
        name = f"{self._board.host}.{self._rank}.{self._count}"
        self.question = Question(name, tuple(sorted(lines)), records)
        self._asked_at, self._parcels, self._stale = now, {}, set()
        self._board.ask(self.question)

    def waited(self, now: float) -> float:
        """Seconds since the question."""
        return now - self._asked_at

    def answers(self, now: float, mine: Callable[[Question, float], Parcel]) -> Evidence | None:
        """All of them, without those of hosts that are silent or gone; None: some are awaited. `mine` makes
        this host's own.
        """
        question = self.question
        assert question is not None
        silent, gone = {}, {}
        for host in range(self._hosts):
            if (at := self._lost.since(host, now)) is not None:
                gone[host] = at
                if not self._told.over(host):  # what it has left is of another time
                    self._parcels.pop(host, None)
                    continue
            if host in self._parcels:
                continue
            if (since := self._told.silent_since(host, now)) is not None:
                silent[host] = since
                continue
            found = self._answer(question, host, now, mine)
            if found is None:
                return None
            self._parcels[host] = found
        self.question = None
        ahead = {host: self._ahead(host) for host in self._parcels}
        return Evidence(dict(self._parcels), silent, ahead, gone, whole=not self._stale)

    def give_up(self) -> None:
        """Await no more answers."""
        self.question = None

    def _ahead(self, host: int) -> float:
        return 0.0 if host == self._board.host else self._clocks.ahead(host)

    def _answer(
        self, question: Question, host: int, now: float, mine: Callable[[Question, float], Parcel]
    ) -> Parcel | None:
        if host == self._board.host:
            return mine(question, now)
        found = None if self._told.over(host) else self._board.answered(question.id, host)
        unasked = found is None and self._may_not_answer(host, now)
        if unasked:
            found = self._board.last(host)
            if not self._told.over(host):
                self._stale.add(host)
        if found is not None:
            seen = time.monotonic()
            wall = time.time() - seen - found.wall
            asked = None if unasked else self._asked_at
            self._clocks.heard(host, asked, found.read, found.sent, seen, wall)
        return found

    def _may_not_answer(self, host: int, now: float) -> bool:
        """Whether nobody may be left there. Whoever starts the ranks of a host ends all of them within
        milliseconds once one has failed.
        """
        return self._told.over(host) or (self.waited(now) > _DIES and self._told.had_an_event(host, now))


def with_lines(evidence: Evidence, later: Evidence) -> Evidence:
    """The evidence, with the lines that were asked for later: who is asked may go on for that."""
    parcels = {}
    for host, parcel in evidence.parcels.items():
        asked = later.parcels[host].facts if host in later.parcels else {}
        facts = {
            rank: replace(one, line=asked[rank].line) if rank in asked else one
            for rank, one in parcel.facts.items()
        }
        parcels[host] = replace(parcel, facts=facts)
    return replace(evidence, parcels=parcels)
