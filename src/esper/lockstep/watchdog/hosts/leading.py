"""The host that judges for all: when it asks the others, and what it makes of their answers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from esper.lockstep.proof.finding import Finding
from esper.lockstep.record.manifest import Manifest
from esper.lockstep.report.diagnosis import Report
from esper.lockstep.watchdog.hosts.asking import Asking, with_lines
from esper.lockstep.watchdog.hosts.board import Board, Events, Question
from esper.lockstep.watchdog.hosts.judging import Evidence, judge, lacking_lines, same
from esper.lockstep.watchdog.hosts.lost import Lost
from esper.lockstep.watchdog.hosts.parcel import Parcel
from esper.lockstep.watchdog.hosts.told import Told
from esper.lockstep.watchdog.sockets import Endpoint

# A wait is looked at when it lasts so long, seconds; and at once where somebody has left, or a call raised.
FIRST_LOOK = 0.5
# What such a look has not explained is looked at again when it lasts twice as long. A program whose steps are
# that slow is not looked at in each of them; after so many seconds it may have become a faster one.
_FORGIVES_AFTER = 60.0
_LATE_AGAIN = 1.0  # seconds between two looks at what the patience is over for
_ANSWERS_WITHIN = 5.0
# Threads are to be seen asleep twice, so nothing is found in one round; and more find no more.
_ROUNDS, _MOST_ROUNDS = 2, 4
# Of all ledgers together so many records are sent: reading them takes a second of one processor.
_RECORDS, _FEWEST = 1 << 14, 256

_Judge = Callable[[Evidence], tuple[Finding, Report] | None]


class Lead:
    """`look` never waits for a host."""

    def __init__(
        self,
        board: Board,
        rank: int,
        hosts: Sequence[Sequence[int]],
        manifest: Manifest,
        folder: Path,
        patience: float,
        peers: Callable[[], Iterable[Endpoint]],
    ) -> None:
        """`rank`: who speaks for this host; `hosts`: the ranks of each; `folder`: where there is room;
        `peers`: the other ends of this host's connections.
        """
        self._board, self._hosts, self._manifest, self._folder = board, hosts, manifest, folder
        self.told = Told(board.host, patience)
        self.lost = Lost(board, self.told, peers)
        self._asking = Asking(board, rank, len(hosts), self.told, self.lost)
        self._threshold, self._forgiven = FIRST_LOOK, time.monotonic()
        self._judged_events: Events = frozenset()
        self._judged_marks: frozenset[tuple[str, int]] = frozenset()
        self._not_before = 0.0
        self._round = 0
        self._found: Finding | None = None
        self._decided: tuple[Evidence, _Judge] | None = None

    @property
    def question(self) -> Question | None:
        """Whose answers are awaited, so that it is worth looking again soon."""
        return self._asking.question

    def look(self, now: float, mine: Callable[[Question, float], Parcel]) -> dict[str, Any] | None:
        """The verdict, once there is one. `mine` makes this host's own parcel. Raises RuntimeError where the
        store does not answer.
        """
        self.told.hear(now, self._board.said())
        if self.question is None:
            if self._due(now):
                self._round, self._found, self._decided = 0, None, None
                self._ask(now)
            return None
        evidence = self._asking.answers(now, mine)
        late = self._asking.waited(now) > _ANSWERS_WITHIN
        if self._decided is not None and (evidence is not None or late):
            return self._verdict(*self._decided, evidence)
        if evidence is not None:
            return self._weigh(evidence, now)
        if late:
            self._rest(now)
        return None

    def _due(self, now: float) -> bool:
        """Whether what the hosts say of themselves calls for a closer look."""
        told = self.told
        if now < self._not_before or told.unrecorded():
            return False
        if now - self._forgiven > _FORGIVES_AFTER:
            self._threshold, self._forgiven = max(FIRST_LOOK, self._threshold / 2), now
        if told.differing() - self._judged_marks or told.events() - self._judged_events:
            return True
        longest = told.longest_wait(now)
        return longest is not None and longest >= min(told.allowed(), self._threshold)

    def _ask(self, now: float) -> None:
        self._round += 1
        self._asking.ask(now, records=max(_FEWEST, _RECORDS // self._manifest.world_size))

    def _weigh(self, evidence: Evidence, now: float) -> dict[str, Any] | None:
        judged = self._judge(time.monotonic())
        found = judged(evidence)
        before, self._found = self._found, None if found is None else found[0]
        # What was found is looked at once more: the ledgers were read one after the other.
        if found is not None and before is not None and same(before, found[0]):
            lines = lacking_lines(found[0])
            if not lines:
                return self._verdict(evidence, judged, None)
            self._decided = evidence, judged
            self._asking.ask(now, lines=lines, records=0)
        elif self._round < _ROUNDS or (self._round < _MOST_ROUNDS and found is not None):
            self._ask(now)
        else:
            self._judged_events, self._judged_marks = self.told.events(), self.told.differing()
            self._rest(now)
        return None

    def _judge(self, now: float) -> _Judge:
        """How evidence is judged by what is known now: always the same way, though more is heard later."""
        return partial(
            judge,
            now=now,
            manifest=self._manifest,
            hosts=self._hosts,
            folder=self._folder,
            patience=self.told.allowed(),
            starved=functools.cache(self.told.starved),
        )

    def _verdict(self, evidence: Evidence, judged: _Judge, later: Evidence | None) -> dict[str, Any]:
        found = judged(evidence if later is None else with_lines(evidence, later))
        assert found is not None
        facts = [one for parcel in evidence.parcels.values() for one in parcel.facts.values()]
        ends = [end for one in facts for end in one.endpoints]
        for host in evidence.silent:
            ends += self._board.ends(host)
        return self._board.decide({"report": found[1].to_json(), "endpoints": ends})

    def _rest(self, now: float) -> None:
        """Nothing has come of it."""
        self._asking.give_up()
        longest = self.told.longest_wait(now) or 0.0
        if longest < self.told.allowed():
            self._threshold = max(self._threshold, 2 * longest)
        self._forgiven = now
        self._not_before = now + _LATE_AGAIN
