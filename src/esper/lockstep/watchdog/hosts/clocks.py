"""By how much the clocks of other hosts are ahead: what their clocks on the wall say, within what question
and answer allow.

The algorithm is that of NTP (RFC 5905, section 8), with bounds in place of its filter: what is asked at t0,
read there at t1, answered there at t2 and seen here at t3 puts their clock ahead by at most t1 - t0 and at
least t2 - t3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Two quartz clocks part by less than 0.1 ms a second: bounds that are older than this say too little.
_HOLDS = 120.0


@dataclass(frozen=True)
class _Bounds:
    at: float
    least: float
    most: float


class Clocks:
    """Of the other hosts, against this one's CLOCK_MONOTONIC; seconds."""

    def __init__(self) -> None:
        self._bounds: dict[int, list[_Bounds]] = {}
        self._told: dict[int, float] = {}

    def heard(
        self, host: int, asked: float | None, read: float, answered: float, seen: float, told: float
    ) -> None:
        """`asked` (None: nobody has) and `seen` by our clock, `read` and `answered` by theirs; `told`: how
        far theirs is ahead where both clocks on the wall are right.
        """
        most = math.inf if asked is None else read - asked
        known = [one for one in self._bounds.get(host, []) if seen - one.at < _HOLDS]
        self._bounds[host] = [*known, _Bounds(seen, answered - seen, most)]
        self._told[host] = told

    def ahead(self, host: int) -> float:
        """Of a host that has been heard."""
        bounds = self._bounds[host]
        least, most = max(one.least for one in bounds), min(one.most for one in bounds)
        if least > most:  # one of the clocks was set, or a machine slept
            del bounds[:-1]
            least, most = bounds[0].least, bounds[0].most
        return min(max(self._told[host], least), most)
