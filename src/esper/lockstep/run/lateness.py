"""Ranks that keep others waiting: one look at their line while they live, and a word to whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esper.lockstep.proof.suspicion import Late
from esper.lockstep.record.entry import Site
from esper.lockstep.report.diagnosis import short_site
from esper.lockstep.report.message import late_text

# After this long its line is worth a signal: it may be killed from outside before anything is proved.
_LOOK_AFTER = 0.3
_SHOW_AFTER = 0.5


@dataclass(frozen=True)
class Look:
    """Where a late rank was when it was looked at; `state` is sleeping, running, compiling or stopped."""

    since: float  # its lateness, CLOCK_MONOTONIC seconds
    at: float
    state: str
    site: Site | None


class LateWatch:
    """Follows late ranks from poll to poll; each lateness is looked at once and shown once."""

    def __init__(self, look: Callable[[int], tuple[str, Site | None]], show: Callable[[str], None]) -> None:
        self._look, self._show = look, show
        self._looks: dict[int, Look] = {}
        self._shown: dict[int, float] = {}

    def follow(self, late: Sequence[Late], now: float) -> None:
        """Who is late at this moment."""
        for one in late:
            known = self._looks.get(one.rank)
            if now - one.since >= _LOOK_AFTER and (known is None or known.since != one.since):
                known = self._looks[one.rank] = Look(one.since, now, *self._look(one.rank))
            if (
                now - one.since >= _SHOW_AFTER
                and self._shown.get(one.rank) != one.since
                and known is not None
            ):
                self._shown[one.rank] = one.since
                self._show(_text(one, known, now))

    def last_look(self, rank: int) -> Look | None:
        """Where the rank was when it was last late."""
        return self._looks.get(rank)


def _text(late: Late, look: Look, now: float) -> str:
    at = "" if look.state == "compiling" else f" at {short_site(look.site)}"
    return f"{late_text(late, now)}; it is {look.state}{at}"
