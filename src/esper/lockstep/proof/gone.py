"""Ranks that others wait for and that can't come any more, and whether a peer brought them down."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from esper.lockstep.proof.finding import Finding, Where, joined
from esper.lockstep.proof.mailbox import Wait
from esper.lockstep.proof.view import View
from esper.lockstep.record.entry import Entry, Flag, Kind, Site

SIGABRT = -6
# Ranks that leave a program by the same line leave it one after the other: seconds that the others get to do
# so, too, before the first of them is named without them.
_LEAVE_WITHIN = 0.05
NOTICED_WITHIN = 0.2  # seconds from a process's death to its pidfd being read, with both cores loaded


def gone(
    view: View, waits: dict[int, list[Wait]], undecided: set[int], now: float, *, excuse: bool = True
) -> list[Finding]:
    """Ranks that others wait for and that can't come any more; without `excuse` also those that a peer's end
    has brought down.
    """
    findings: dict[tuple[str, int, int], Finding] = {}
    for rank_waits in waits.values():
        for wait in rank_waits:
            group = wait.entry.group.removeprefix("p2p:")
            last_left = _last_left(view, waits, wait, group, excuse=excuse) if wait.any_of else 0.0
            if last_left is None:
                continue
            for rank in wait.lacks:
                key = (wait.entry.group, wait.entry.sequence, rank)
                if not wait.sure or rank in undecided or key in findings:
                    continue
                end = terminal(view, waits, rank, group, excuse=excuse)
                if end is None:
                    continue
                kind, at, where = end
                waiting = tuple(
                    entry for entry in _companions(waits, wait, rank) if _outlasted(entry, at, view, rank)
                )
                if not waiting:
                    continue
                since = max(at, last_left, min(entry.issued for entry in waiting))
                findings[key] = Finding(
                    kind, since, wait.entry.group, wait.entry.sequence, waiting, {rank: where}
                )
    return [one for one in joined(list(findings.values())) if not _more_may_leave(view, one, now)]


def _last_left(
    view: View, waits: dict[int, list[Wait]], wait: Wait, group: str, *, excuse: bool
) -> float | None:
    """When the last of those left of whom one would be enough; None while there is one."""
    ends = terminals(view, waits, wait.lacks, group, excuse=excuse)
    return max(at for _, at, _ in ends.values()) if len(ends) == len(wait.lacks) else None


def _more_may_leave(view: View, finding: Finding, now: float) -> bool:
    """Whether members that have not come yet may still be about to leave as those did that are named."""
    slot = view.matching.slot(finding.group, finding.sequence)
    if slot is None or finding.kind not in ("missing", "exited") or now - finding.since > _LEAVE_WITHIN:
        return False
    return any(rank not in finding.guilty and not view.ranks[rank].left for rank in slot.absent)


def _outlasted(entry: Entry, at: float, view: View, rank: int) -> bool:
    """Whether the wait went on until `rank` was gone: one that was given up before is the program's own
    affair.
    """
    ended = view.ranks[rank].ended
    # A death is noticed a little after the peers' connections broke.
    noticed_late = NOTICED_WITHIN if ended is not None and ended.at == at else 0.0
    return entry.times.wait_ended == 0.0 or entry.times.wait_ended > at - noticed_late


def terminal(
    view: View, waits: dict[int, list[Wait]], rank: int, group: str, *, excuse: bool
) -> tuple[str, float, Where] | None:
    """(kind, since, where) of the first event after which the rank can enter nothing in `group`; None while
    it can, or if a peer brought it down.
    """
    seen = view.ranks[rank]
    gone = seen.ended is not None or seen.over is not None
    ends: list[tuple[Entry, str, Where]] = []
    raised, left, destroyed, over = seen.raised, seen.exit, seen.destroyed.get(group), seen.over
    last = seen.last.site if seen.last else None
    if raised is not None and (gone or raised.detail.get("leaves")):
        text = f"{raised.detail.get('type', 'an exception')}: {raised.detail.get('text', '')}"
        ends.append((raised, "raised", Where("raised", site=raised.site, detail=text)))
    if left is not None and (gone or left.detail.get("leaves")):
        ends.append((left, *_exit(left, seen.ended.code if seen.ended else None, left.site or last)))
    if destroyed is not None:
        # In `finally` or `except` it is what the exception led to.
        error = destroyed.detail.get("error")
        kind = "raised" if error else "missing"
        at = Where("raised" if error else "running", "destroy_process_group", destroyed.site, detail=error)
        ends.append((destroyed, kind, at))
    if over is not None:
        ends.append((over, "missing", Where("exited", site=last, detail="the program ended")))
    if ends:
        entry, kind, where = min(ends, key=lambda end: end[0].issued)
        return None if excuse and brought_down(view, waits, entry) else (kind, entry.issued, where)
    if seen.ended is None:
        return None
    code, at_end = seen.ended.code, seen.ended.at
    if excuse and code == SIGABRT and waits.get(rank):
        return None  # gloo aborts a rank on a size that its peer got wrong
    if code is None:  # a program that ends by itself leaves word
        return "crashed", at_end, Where("killed", site=last, detail="its process is gone")
    kind, where = _as_told(code, last)
    return kind, at_end, where


def terminals(
    view: View, waits: dict[int, list[Wait]], ranks: Iterable[int], group: str, *, excuse: bool
) -> dict[int, tuple[str, float, Where]]:
    """`terminal` of those of the ranks that have one, in order."""
    ends = ((rank, terminal(view, waits, rank, group, excuse=excuse)) for rank in sorted(ranks))
    return {rank: end for rank, end in ends if end is not None}


def _exit(left: Entry, code: int | None, site: Site | None) -> tuple[str, Where]:
    """How a rank left that said so itself: with its status, if it knew that."""
    if (own := left.detail.get("code")) is None:
        return _as_told(code, site)
    return "exited", Where("exited", site=site, detail=f"status {own}")


def _as_told(code: int | None, site: Site | None) -> tuple[str, Where]:
    """How a process ended, as waitpid has it; None: nobody was told."""
    if code is None:
        return "exited", Where("exited", site=site, detail="its process is gone")
    if code >= 0:
        return "exited", Where("exited", site=site, detail=f"status {code}")
    return "crashed", Where("killed", site=site, detail=_signal_name(-code))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def brought_down(view: View, waits: dict[int, list[Wait]], end: Entry) -> bool:
    """Whether this end of a rank's program is what a peer did to it: an error of a collective that has not
    been mended since.
    """
    if end.detail.get("victim"):
        return True
    last = view.ranks[end.rank].last
    # Nothing marks an exception that comes out of a backward for the sake of the reducer's call. An exception
    # of the program itself, a gradient hook's say, has a line of its own.
    if end.kind is Kind.RAISED:
        return end.site is not None and last is not None and last.native and last.site == end.site
    # All may have entered it: a connection that broke in its midst fails it, too.
    fresh = None if last is None else view.refresh(last)
    broken = [wait.entry for wait in waits.get(end.rank, ())] + ([] if fresh is None else [fresh])
    return any(
        entry.times.flags & Flag.FAILED
        and not entry.times.flags & Flag.POLLED
        and entry.times.wait_ended <= end.issued
        for entry in broken
    )


def _companions(waits: dict[int, list[Wait]], wait: Wait, guilty: int) -> tuple[Entry, ...]:
    """Everyone who waits in the same collective."""
    place = (wait.entry.group, wait.entry.sequence)
    return tuple(
        other.entry
        for rank, ones in sorted(waits.items())
        if rank != guilty
        for other in ones
        if (other.entry.group, other.entry.sequence) == place and guilty in other.lacks
    )
