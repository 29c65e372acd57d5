"""The ranks of a job that runs on several hosts. On each host one of them speaks for it: it tells the others
through the job's store how its ranks are, and sends their ledgers when the host that leads asks for them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from esper.lockstep.record.manifest import Manifest
from esper.lockstep.report.diagnosis import Diagnosis, Report
from esper.lockstep.report.verdict import parsed
from esper.lockstep.watchdog.folder import Word, tell, told
from esper.lockstep.watchdog.hosts.alone import Alone
from esper.lockstep.watchdog.hosts.board import Board, Events, Question, RankSummary, Summary, events
from esper.lockstep.watchdog.hosts.ends import read_ends, write_ends
from esper.lockstep.watchdog.hosts.facts import FactFinder
from esper.lockstep.watchdog.hosts.following import Following
from esper.lockstep.watchdog.hosts.leading import FIRST_LOOK, Lead
from esper.lockstep.watchdog.hosts.parcel import Parcel, parcel
from esper.lockstep.watchdog.hosts.succession import Succession
from esper.lockstep.watchdog.localranks import BEAT, LocalRanks
from esper.lockstep.watchdog.meeting import Meeting, Member
from esper.lockstep.watchdog.requests import ByFile
from esper.lockstep.watchdog.sockets import Endpoint

_SAYS_EVERY, _LEAVES_EVERY, _ENDS_EVERY = 2 * BEAT, 1.0, 60.0
# While questions are asked, and for so long after the last one.
_ASKING, _ASKED_LASTS = 0.02, 2.0
_BETWEEN_TALKS = 0.015
_UNASKED = 256  # records of each rank: nobody may be here for long, and those of its failure are the last
# While a rank has begun to wait for long, or something has failed: it is likely to be asked.
_WAITING, _WAITING_LASTS = 0.1, 4.0


class HostsWatch:
    """This rank's part in it. `look` waits for the store's answers only."""

    def __init__(
        self,
        folder: Path,
        ledgers: Path,
        local: LocalRanks,
        patience: float,
        internal: tuple[str, ...],
        meeting: Meeting,
        members: Sequence[Member],
        manifest: Manifest,
    ) -> None:
        """As HostWatch; `members`: those of all hosts. Raises RuntimeError without the store's answer."""
        self.local, self._folder, self._ledgers = local, folder, ledgers
        self._patience = patience
        self._following = Following(local.readers)
        self._facts = FactFinder(
            ledgers, local, self._following, internal, ByFile(folder, local.rank, local.pids, local.beats)
        )
        hosts = ranks_by_host(members)
        own = next(index for index, ranks in enumerate(hosts) if local.rank in ranks)
        self._board = Board(meeting, own, len(hosts))
        self._lead = Lead(self._board, local.rank, hosts, manifest, folder, patience, self._facts.peers)
        self._succession = Succession(own)
        self._alone = Alone(own, hosts, manifest, folder)
        self._said, self._said_at, self._talked = 0, 0.0, 0.0
        self._left_at = self._told_ends_at = -_ENDS_EVERY
        self._events: Events = frozenset()
        self._waits = 0.0  # the longest wait, seconds
        self._failed_at = -_WAITING_LASTS
        self._answered: str | None = None
        self._asked_at = 0.0
        self._report: Report | None = None
        self.saw_an_end = False
        self.broken: str | None = None

    @property
    def pause(self) -> float:
        """Seconds that may pass until the next look."""
        if time.monotonic() - self._asked_at < _ASKED_LASTS or self._lead.question is not None:
            return _ASKING
        failed = time.monotonic() - self._failed_at < _WAITING_LASTS
        return _WAITING if failed or FIRST_LOOK <= self._waits < _WAITING_LASTS else BEAT

    def look(self) -> Diagnosis | None:
        """One look; the verdict, once there is one."""
        now = time.monotonic()
        self.saw_an_end = self.local.look(now, self._facts.ended)
        leads = self.local.leads(now)
        if not leads and not self.local.fall_behind():
            return None
        self._following.follow()
        if not leads:
            return None
        self._facts.look(now)
        try:
            found = self._talk(now)
            self._alone.heard()
        except RuntimeError:  # the store's server is gone, or can't be reached
            report = self._alone.look(
                time.monotonic(), self._longest_wait(), self._allowed(now), self._parcel
            )
            found = None if report is None else {"report": report.to_json(), "endpoints": []}
        if found is None:
            return None
        self._report = parsed(found["report"])
        write_ends(self._folder, found["endpoints"])  # the others here look for the verdict
        return self._report.diagnoses[0]

    @property
    def ends(self) -> list[Endpoint]:
        """Of the other hosts' connections, once there is a verdict."""
        return read_ends(self._folder)

    def report(self) -> Report:
        """What was found."""
        assert self._report is not None
        return self._report

    def leave(self) -> None:
        """This rank is watched no more: the last one of a host leaves what may be asked for."""
        tell(self._folder, self.local.rank, Word.LEAVES)
        if not self.local.is_last(self._leaves):
            return
        with suppress(RuntimeError):
            self._following.follow()
            self._board.leave(self._parcel(None, time.monotonic()))
            self._say(time.monotonic(), self._ranks(), over=True)

    def _talk(self, now: float) -> dict[str, Any] | None:
        # What has failed in this rank wakes it every few milliseconds.
        if now - self._talked < _BETWEEN_TALKS and not self.saw_an_end:
            return None
        self._talked = now
        ranks = self._ranks()
        before, self._waits = self._waits, max((one.waiting or 0.0 for one in ranks.values()), default=0.0)
        failing = events(ranks) != self._events
        if failing:
            self._failed_at = now
        if failing and now - self._left_at >= _LEAVES_EVERY:  # before others are told of it
            self._left_at = now
            self._board.leave(self._parcel(None, now))
        if failing or now - self._said_at >= _SAYS_EVERY or before < FIRST_LOOK <= self._waits:
            self._say(now, ranks)
        if now - self._told_ends_at >= _ENDS_EVERY:
            self._told_ends_at = now
            self._board.tell_ends([end for one in self._facts.ends().values() for end in one])
            self._lead.lost.remember()
        question, verdict = self._board.news()
        if verdict is not None:
            return verdict
        if question is not None and question.id != self._answered:
            self._answered, self._asked_at = question.id, now
            # Its own it has without asking; and what came meanwhile another rank of this host has answered,
            # with how this one was then.
            if question != self._lead.question and not self.local.was_away:
                self._board.answer(question.id, self._parcel(question, now))
        troubled = self._waits >= FIRST_LOOK or any(one.failed is not None for one in ranks.values())
        if not self._succession.leads(now, self._board, soon=troubled):
            return None
        if self._succession.before is not None:
            self._lead.told.not_heard_since(*self._succession.before)
        found = self._lead.look(now, self._parcel)
        if (other := self._lead.told.living_before(now)) is not None:
            self._succession.yield_to(other, now)
        return found

    def _say(self, now: float, ranks: Mapping[int, RankSummary], *, over: bool = False) -> None:
        self._said += 1
        self._said_at, self._events = now, events(ranks)
        marks: dict[str, dict[int, tuple[int, int]]] = {}
        for rank, one in self._following.progress.items():
            for group, mark in one.marks.items():
                marks.setdefault(group, {})[rank] = mark
        gap = self.local.gaps(now, self._patience)
        stopped = any(self._unrecorded(rank) for rank in ranks)
        self._board.say(Summary(self._said, ranks, marks, gap, over, stopped))

    def _ranks(self) -> dict[int, RankSummary]:
        return {
            rank: RankSummary(
                None if self._facts.gone(rank) else self._following.waiting(rank),
                self._following.progress[rank].left or self._facts.gone(rank) or self._leaves(rank),
                self._facts.gone(rank),
                self._following.progress[rank].failed,
                self._facts.kept_waiting(rank),
            )
            for rank in self.local.readers
        }

    def _parcel(self, question: Question | None, read: float) -> Parcel:
        lines: Collection[int] = () if question is None else question.lines
        entered = {rank: one.entered for rank, one in self._following.progress.items() if one.whole}
        return parcel(
            "" if question is None else question.id,
            read,
            self._ledgers,
            self._facts.facts(lines, self._unrecorded),
            entered,
            _UNASKED if question is None else question.records,
        )

    def _leaves(self, rank: int) -> bool:
        return told(self._folder, rank, Word.LEAVES)

    def _unrecorded(self, rank: int) -> bool:
        return told(self._folder, rank, Word.STOPPED)

    def _longest_wait(self) -> float:
        waits = (self._following.waiting(rank) for rank in self.local.pids if not self._facts.gone(rank))
        return max((wait for wait in waits if wait is not None), default=0.0)

    def _allowed(self, now: float) -> float:
        return self._patience + self.local.gaps(now, self._patience)


def ranks_by_host(members: Sequence[Member]) -> list[tuple[int, ...]]:
    """The ranks of each host, hosts in the order of their lowest rank."""
    found: dict[str, list[int]] = {}
    for member in sorted(members, key=lambda one: one.rank):
        found.setdefault(member.host, []).append(member.rank)
    return [tuple(ranks) for ranks in found.values()]
