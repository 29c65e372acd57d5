"""What the hosts have told of themselves, and what of it calls for a closer look."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from esper.lockstep.postmortem.afterwards import SILENT_AFTER
from esper.lockstep.run.starvation import Remembered
from esper.lockstep.watchdog.hosts.board import Events, Summary, events

_LATELY = 10.0


class Told:
    """By all hosts, to the one that leads; times by its clock."""

    def __init__(self, own: int, patience: float) -> None:
        """`own`: this host's index."""
        self._own, self._patience = own, patience
        self._heard: dict[int, tuple[int, float]] = {}  # by host: the last summary's number, and when it came
        self._lives: set[int] = set()  # the hosts of which more than one came
        self._says: Mapping[int, Summary] = {}
        self._event_at: dict[int, float] = {}  # by host: when the last one of `events` was heard of
        self._kept_waiting = Remembered(patience)
        self._began: float | None = None  # to listen

    def hear(self, now: float, says: Mapping[int, Summary]) -> None:
        """Take what each host has said last."""
        if self._began is None:
            self._began = now
        earlier, self._says = self._says, says
        for host, one in says.items():
            before = earlier.get(host)
            if host not in self._heard:  # it may be an old one
                self._heard[host] = one.number, self._began
            elif self._heard[host][0] != one.number:
                self._heard[host] = one.number, now
                self._lives.add(host)
                if before is None or events(one.ranks) != events(before.ranks):
                    self._event_at[host] = now
                for rank, summary in one.ranks.items():
                    self._kept_waiting.note(rank, now, summary.kept_waiting)

    def living_before(self, now: float) -> int | None:
        """The first host before this one of which something is heard after all; None: there is none."""
        lives = (host for host in sorted(self._lives) if self.silent_since(host, now) is None)
        return next((host for host in lives if host < self._own), None)

    def silent_since(self, host: int, now: float) -> float | None:
        """Since when nothing is heard of a host; None: it is heard of, or over."""
        if host == self._own or self.over(host):
            return None
        at = self.heard(host)
        return at if now - at > SILENT_AFTER else None

    def heard(self, host: int) -> float:
        """When a host was heard of last; of one that said nothing: when this one began to listen."""
        began = time.monotonic() if self._began is None else self._began
        return self._heard[host][1] if host in self._heard else began

    def not_heard_since(self, host: int, since: float) -> None:
        """Another one here has listened to it before, in vain."""
        if host not in self._lives and host in self._heard:
            self._heard[host] = self._heard[host][0], since

    def present(self, host: int) -> list[int]:
        """The ranks of a host that had not ended by its last word."""
        says = self._says.get(host)
        return [] if says is None else [rank for rank, one in says.ranks.items() if not one.ended]

    def another_failed(self, host: int) -> bool:
        """Whether a call has raised in a rank of another host."""
        return any(
            one.failed is not None
            for other, says in self._says.items()
            if other != host
            for one in says.ranks.values()
        )

    def had_an_event(self, host: int, now: float) -> bool:
        """Whether one of its ranks has left, or failed, a moment ago."""
        return now - self._event_at.get(host, -math.inf) < _LATELY

    def over(self, host: int) -> bool:
        """Whether the last rank of a host has gone."""
        return host in self._says and self._says[host].over

    def unrecorded(self) -> bool:
        """Whether some rank goes on and is watched no more."""
        return any(one.stopped for one in self._says.values())

    def longest_wait(self, now: float) -> float | None:
        """Of all ranks; None: none of them waits."""
        waits = [
            one.waiting + now - self._heard[host][1]
            for host, says in self._says.items()
            if self.silent_since(host, now) is None
            for one in says.ranks.values()
            if one.waiting is not None and not one.left
        ]
        return max(waits, default=None)

    def allowed(self) -> float:
        """The patience, without what a host was not run in: it was waited for by nobody then."""
        return self._patience + max((one.gap for one in self._says.values()), default=0.0)

    def events(self) -> Events:
        """Of all hosts."""
        return frozenset().union(*(events(says.ranks) for says in self._says.values()))

    def differing(self) -> frozenset[tuple[str, int]]:
        """The marks that ranks have passed with other digests."""
        digests: dict[tuple[str, int], set[int]] = {}
        for says in self._says.values():
            for group, by_rank in says.marks.items():
                for sequence, digest in by_rank.values():
                    digests.setdefault((group, sequence), set()).add(digest)
        return frozenset(place for place, found in digests.items() if len(found) > 1)

    def starved(self, rank: int, since: float) -> float:
        """Of the seconds since then, those in which the rank had no processor though it could have run."""
        return self._kept_waiting.since(rank, since)
