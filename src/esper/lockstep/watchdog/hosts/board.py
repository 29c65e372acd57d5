"""What hosts leave for each other in the job's store, under the keys of one meeting; nothing waits for one.

says/<host>         how its ranks are, once a second
asks                the last question of the host that leads
parcel/<id>/<host>  that host's answer
last/<host>         an answer before anybody asked: a rank of it has left, or failed
ends/<host>         its ranks' ends of their connections
verdict             what it came to
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from esper.lockstep.watchdog.hosts.parcel import Parcel
from esper.lockstep.watchdog.meeting import Meeting

Ends = Sequence[tuple[str, int]]  # address in hexadecimal digits, port
Events = frozenset[tuple[int, bool, bool, int | None]]
_NOTHING = "-"  # so that a key is there when it is read: a store waits for one that is not


@dataclass(frozen=True)
class RankSummary:
    """How one rank is: in a wait for `waiting` seconds (None: in none), whether it has left or may be about
    to, and has ended, the number of its last call that raised, and for how many seconds in all it had no
    processor though it could have run.
    """

    waiting: float | None
    left: bool
    ended: bool
    failed: int | None
    kept_waiting: float


def events(ranks: Mapping[int, RankSummary]) -> Events:
    """The ranks that have left, and ended, and the calls that raised."""
    return frozenset(
        (rank, one.left, one.ended, one.failed)
        for rank, one in ranks.items()
        if one.left or one.ended or one.failed is not None
    )


@dataclass(frozen=True)
class Summary:
    """How one host is; `number` counts what it has said."""

    number: int
    ranks: Mapping[int, RankSummary]
    marks: Mapping[str, Mapping[int, tuple[int, int]]] = field(default_factory=dict)  # group: rank: digest
    gap: float = 0.0  # seconds in which it was not run, of those that its patience covers
    over: bool = False  # its last rank has gone
    stopped: bool = False  # a rank of it is watched no more, and goes on

    @staticmethod
    def of(document: dict[str, Any]) -> Summary:
        """Raises KeyError, TypeError or ValueError for what is none."""
        ranks = {int(rank): RankSummary(**one) for rank, one in document.pop("ranks").items()}
        marks = {
            group: {int(rank): (int(mark[0]), int(mark[1])) for rank, mark in by_rank.items()}
            for group, by_rank in document.pop("marks").items()
        }
        return Summary(ranks=ranks, marks=marks, **document)


@dataclass(frozen=True)
class Question:
    """To all hosts: for a parcel, with the lines of those ranks."""

    id: str
    lines: tuple[int, ...]
    records: int


class Board:
    """One host's view of it. Every method raises RuntimeError where the store does not answer."""

    def __init__(self, meeting: Meeting, host: int, hosts: int) -> None:
        self.host = host
        self._meeting, self._hosts = meeting, hosts
        for name in ("asks", "verdict", *(f"says/{one}" for one in range(hosts))):
            meeting.put_first(name, _NOTHING)

    def say(self, summary: Summary) -> None:
        """Tell the others how this host is."""
        self._meeting.put(f"says/{self.host}", json.dumps(asdict(summary)))

    def said(self) -> dict[int, Summary]:
        """What each host has said last; without those who have said nothing yet."""
        found = self._meeting.look_up([f"says/{one}" for one in range(self._hosts)])
        return {host: Summary.of(json.loads(data)) for host, data in enumerate(found) if data != _NOTHING}

    def says(self, host: int) -> Summary | None:
        """What one host has said last; None: nothing yet."""
        (found,) = self._meeting.look_up([f"says/{host}"])
        return None if found == _NOTHING else Summary.of(json.loads(found))

    def ask(self, question: Question) -> None:
        """Ask all hosts."""
        self._meeting.put("asks", json.dumps(asdict(question)))

    def news(self) -> tuple[Question | None, dict[str, Any] | None]:
        """The last question, and the verdict."""
        asks, verdict = self._meeting.look_up(["asks", "verdict"])
        question = None
        if asks != _NOTHING:
            document = json.loads(asks)
            question = Question(document["id"], tuple(document["lines"]), int(document["records"]))
        return question, None if verdict == _NOTHING else json.loads(verdict)

    def answer(self, question: str, parcel: Parcel) -> None:
        """Send this host's answer."""
        self._meeting.put(f"parcel/{question}/{self.host}", parcel.packed())

    def answered(self, question: str, host: int) -> Parcel | None:
        """A host's answer, once; None: not yet."""
        data = self._meeting.take(f"parcel/{question}/{host}")
        return None if data is None else Parcel.unpacked(data)

    def leave(self, parcel: Parcel) -> None:
        """Leave an answer before anybody asks: nobody may be here any more by then."""
        self._meeting.put(f"last/{self.host}", parcel.packed())

    def last(self, host: int) -> Parcel | None:
        """What a host has left; None: nothing."""
        data = self._meeting.find(f"last/{host}")
        return None if data is None else Parcel.unpacked(data)

    def tell_ends(self, ends: Ends) -> None:
        """Tell the others which ends of connections are this host's."""
        self._meeting.put(f"ends/{self.host}", json.dumps(ends))

    def ends(self, host: int) -> Ends:
        """Those of a host, as it told them last."""
        found = self._meeting.find(f"ends/{host}")
        return (
            () if found is None else tuple((str(address), int(port)) for address, port in json.loads(found))
        )

    def decide(self, verdict: dict[str, Any]) -> dict[str, Any]:
        """Give the verdict; the first one stays, and is returned."""
        found = self._meeting.put_first("verdict", json.dumps(verdict), before=_NOTHING)
        return dict(json.loads(found))
