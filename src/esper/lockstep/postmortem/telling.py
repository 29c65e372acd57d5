"""What is said of a run of which nobody is guilty."""

from __future__ import annotations

import time

from esper.lockstep.postmortem.afterwards import Afterwards
from esper.lockstep.postmortem.files import Left
from esper.lockstep.proof.finding import ranks_text
from esper.lockstep.proof.suspicion import late
from esper.lockstep.proof.view import RankView
from esper.lockstep.report.diagnosis import short_site
from esper.lockstep.report.message import late_text
from esper.lockstep.run.apart import not_compared

_SHOW_AFTER = 0.5  # seconds of a wait that a healthy program does not have
_MOST_ROWS = 32


def outcome_text(after: Afterwards, left: Left, stopped: str | None) -> tuple[str, str]:
    """The verdict, and the sentence for it with a line for each place where ranks were. `stopped`: how they
    were told to end, where they were.
    """
    ranks = after.view.ranks
    living = [seen.rank for seen in ranks if not after.over(seen.rank)]
    said = None
    if len(left.witnesses) < left.world_size:
        said = "not all is there, and the rest proves nothing"
    elif stopped is not None:
        said = f"the ranks were told to end ({stopped})"
    elif living or after.view.waits():
        had = f"{ranks_text(living)} had not ended" if living else "all had ended"
        said = f"{had}, and nothing that they did proves any of them wrong; last heard of {_clock(after)}"
    if said is not None:
        return "inconclusive", "\n".join([f"inconclusive: {said}", *_late_lines(after), *_rows(after)])
    failed = [f"failed: rank {seen.rank} {text}" for seen in ranks if (text := _failed(seen)) is not None]
    if failed:
        return "failed", "\n".join(failed)
    lines = [f"clean: all {len(ranks)} ranks ended, and no call was left open", not_compared(after.view)]
    return "clean", "\n".join(line for line in lines if line is not None)


def _late_lines(after: Afterwards) -> list[str]:
    """A line for each rank that others waited for at the end."""
    view, lines = after.view, []
    if view.matching.unreadable:
        return []  # they may have come
    for one in late(view, view.waits(), after.end):
        if after.end - one.since >= _SHOW_AFTER:
            quiet = silence(after, one.rank)
            lines.append(f"  {late_text(one, after.end)}" + (f"; {quiet}" if quiet else ""))
    return lines


def silence(after: Afterwards, rank: int) -> str | None:
    """For how long nothing was heard of a rank; None where it was heard of until the end."""
    seconds = after.silent_for(rank)
    return None if seconds is None else f"nothing was heard of rank {rank} for the last {seconds:.1f} s"


def _failed(seen: RankView) -> str | None:
    if seen.raised is not None:
        detail = seen.raised.detail
        text = f"{detail.get('type')}: {detail.get('text')}".partition("\n")[0].rstrip(": ")
        return f"raised {text}  {short_site(seen.raised.site)}"
    if seen.exit is not None and (code := seen.exit.detail.get("code")):
        return f"exited with status {code}  {short_site(seen.exit.site)}"
    return None


def _rows(after: Afterwards) -> list[str]:
    """A line for each place at which ranks were, those that were at one together."""
    places: dict[str, list[int]] = {}
    for seen in after.view.ranks:
        places.setdefault(_place(after, seen), []).append(seen.rank)
    rows = [
        f"  {ranks_text(ranks)} {_of_many(place) if len(ranks) > 1 else place}"
        for place, ranks in places.items()
    ]
    more = [f"  and {len(rows) - _MOST_ROWS} places more"] if len(rows) > _MOST_ROWS else []
    return [*rows[:_MOST_ROWS], *more]


def _of_many(place: str) -> str:
    verb, _, rest = place.partition(" ")
    return f"{({'was': 'were', 'is': 'are'}).get(verb, verb)} {rest}"


def _place(after: Afterwards, seen: RankView) -> str:
    if seen.rank not in after.known:
        return "is not known"
    silent = after.silent_for(seen.rank)
    quiet = "" if silent is None else f"  <- silent for {silent:.1f} s"
    if silent is None and any(other.left or after.over(other.rank) for other in after.view.ranks):
        quiet = "  <- it left no word of its end"
    if (failed := _failed(seen)) is not None:
        return failed
    if after.over(seen.rank):
        return "was over"
    if seen.last is None:
        return f"had made no call{quiet}"
    fresh = after.view.refresh(seen.last)
    within = "waited in" if fresh is not None and fresh.waited() else "was last in"
    return f"{within} {seen.last.op} #{seen.last.sequence}  {short_site(seen.last.site)}{quiet}"


def _clock(after: Afterwards) -> str:
    at = after.end + after.clock_offset
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    except (ValueError, OverflowError, OSError):
        return "a time that no calendar has"
