"""How each rank of a run ended, as `esper.lockstep.report/1` has it."""

from __future__ import annotations

from collections.abc import Sequence

from esper.lockstep.proof.view import RankView
from esper.lockstep.report.diagnosis import Diagnosis, RankEnd, Report, site_text


def report_of(verdict: str, ranks: Sequence[RankView], diagnosis: Diagnosis | None) -> Report:
    """The run as a whole."""
    return Report(verdict, () if diagnosis is None else (diagnosis,), tuple(map(_end, ranks)))


def _end(seen: RankView) -> RankEnd:
    code = seen.ended.code if seen.ended else None
    return RankEnd(
        seen.rank,
        exit=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        last={
            "op": seen.last.op if seen.last else None,
            "site": site_text(seen.last.site) if seen.last else None,
        },
    )
