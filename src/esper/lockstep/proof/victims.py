"""Ranks that a peer's end has brought down, and which peer that was.

Judged a little after they ended, since a death is noticed late.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from esper.lockstep.proof.finding import Finding, Patience, Where, joined
from esper.lockstep.proof.gone import NOTICED_WITHIN, SIGABRT, brought_down, gone, terminal, terminals
from esper.lockstep.proof.mailbox import Wait
from esper.lockstep.proof.view import RankView, View
from esper.lockstep.record.entry import Entry, Flag


def victims(
    view: View, waits: dict[int, list[Wait]], now: float, patience: Patience, final: bool
) -> list[Finding]:
    """What brought down those who ended with an error of a collective."""
    return (
        _excused(view, waits, now, patience, final)
        or _broken_off(view, waits, now, final)
        or _held_back(view, waits, now)
        or _given_up(view, waits, now)
    )


def failed(view: View, rank: int) -> Where | None:
    """The exception that ended this rank's program, though its process goes on: a thread keeps it, or what a
    test leaves is being cleared up.
    """
    raised = view.ranks[rank].raised
    if raised is None:
        return None
    text = f"{raised.detail.get('type', 'an exception')}: {raised.detail.get('text', '')}"
    return Where("raised", site=raised.site, detail=f"{text}; its process goes on")


def _excused(
    view: View, waits: dict[int, list[Wait]], now: float, patience: Patience, final: bool
) -> list[Finding]:
    """Ranks that seemed brought down by a peer. The peer is the guilty one if it is known; if there is none,
    the excuse does not hold.
    """
    found = []
    for finding in gone(view, waits, set(), now, excuse=False):
        if all(not_connected(view, rank, finding.group) for rank in finding.guilty):
            continue  # the run has the failure of that rank
        cause = _cause(view, waits, finding.since + NOTICED_WITHIN)
        if cause is not None:
            rank, (kind, at, where) = cause
            found.append(replace(finding, kind=kind, since=max(at, finding.since), guilty={rank: where}))
        elif any(seen.vanished for seen in view.ranks if seen.rank not in finding.guilty):
            continue  # that one's end may have been the first, and what broke the others' calls
        elif final or now - finding.since > patience.running or not _preceded(view, finding, now):
            found.append(finding)
    return found


def not_connected(view: View, rank: int, group: str) -> bool:
    """Whether the rank ended since torch could not connect it, though others were let into the job: at an
    address of a peer that is no longer true, say.
    """
    last, raised = view.ranks[rank].last, view.ranks[rank].raised
    if last is None or raised is None or last.op != "init_process_group" or last.group == group:
        return False
    fresh = view.refresh(last)
    return bool(raised.detail.get("victim") and fresh is not None and fresh.times.flags & Flag.FAILED)


def _preceded(view: View, finding: Finding, now: float) -> bool:
    """Whether somebody else's end may have come before this one; a death is noticed a little late."""
    if now - finding.since <= NOTICED_WITHIN:
        return True
    for seen in view.ranks:
        if seen.rank in finding.guilty:
            continue
        events = [event.issued for event in (seen.raised, seen.exit, seen.over) if event is not None]
        events += [event.issued for event in seen.destroyed.values()]
        if any(at <= finding.since for at in events):
            return True
        if seen.ended is not None and not events and seen.ended.at <= finding.since + NOTICED_WITHIN:
            return True
    return False


def _cause(
    view: View, waits: dict[int, list[Wait]], until: float
) -> tuple[int, tuple[str, float, Where]] | None:
    """The first rank whose process failed by itself, and how."""
    ends = [
        (seen.rank, end)
        for seen in view.ranks
        if _fails(view, seen)
        if (end := terminal(view, waits, seen.rank, "", excuse=True)) is not None and end[1] <= until
    ]
    return min(ends, key=lambda one: one[1][1], default=None)


def _fails(view: View, seen: RankView) -> bool:
    """Whether this rank's end may be what broke a peer's call: it failed, or left its own under way."""
    if seen.ended is None or seen.ended.code == SIGABRT:
        return False
    return seen.ended.code != 0 or any(
        not entry.native and not entry.times.wait_ended for entry in _last(view, seen)
    )


def _last(view: View, seen: RankView) -> list[Entry]:
    """The last call of each of its threads, as it is now."""
    fresh = (view.refresh(entry) for entry in seen.last_of_thread.values())
    return [entry for entry in fresh if entry is not None]


def _broken_off(view: View, waits: dict[int, list[Wait]], now: float, final: bool) -> list[Finding]:
    """Calls that broke since a member ended in their midst, though all had entered them, or before they were
    made.
    """
    found = []
    for seen in view.ranks:
        end = seen.raised or seen.exit
        if end is None or not seen.left or not brought_down(view, waits, end):
            continue
        if not final and now - end.issued <= NOTICED_WITHIN:
            continue
        for entry in _last(view, seen):
            if entry.times.flags & Flag.FAILED or entry.native:
                found += _by_members(view, waits, entry, end.issued + NOTICED_WITHIN)
    return joined(found)


def _held_back(view: View, waits: dict[int, list[Wait]], now: float) -> list[Finding]:
    """Calls that broke since a member failed in their midst, and whose ranks do not end by that before a
    verdict says so: the same as those that have ended.
    """
    if not view.holds_back:
        return []
    found = []
    living = [seen for seen in view.ranks if not seen.left and seen.ended is None]
    last = [entry for seen in living for entry in _last(view, seen)]
    for entry in last:
        broke = entry.times.wait_ended
        if not _broken(entry) or now - broke <= NOTICED_WITHIN:
            continue
        place = (entry.group, entry.sequence)
        waiting = tuple(
            one for one in last if (one.group, one.sequence) == place and (_broken(one) or one.blocks())
        )
        found += [
            replace(one, waiting=waiting)
            for one in _by_members(view, waits, entry, broke + NOTICED_WITHIN)
            if all(_fails(view, view.ranks[rank]) for rank in one.guilty)
        ]
    return joined(found)


def _broken(entry: Entry) -> bool:
    """Whether the call raised, though no time-out of its own was over."""
    return bool(entry.times.flags & Flag.FAILED and not entry.times.flags & Flag.POLLED)


def _by_members(view: View, waits: dict[int, list[Wait]], entry: Entry, until: float) -> list[Finding]:
    """The call that broke, with each of its members that had ended by then, and not for a peer's sake."""
    group, place = entry.group.removeprefix("p2p:"), (entry.group, entry.sequence)
    members = view.matching.members(group)
    partners = members[entry.peer : entry.peer + 1] if entry.peer >= 0 else members
    others = (rank for rank in partners if rank != entry.rank)
    ends = {
        rank: end
        for rank, end in terminals(view, waits, others, group, excuse=True).items()
        if end[1] <= until
    }
    # Any of them could have served a receive from any source until the last of them was gone.
    last = (
        max((at for _, at, _ in ends.values()), default=0.0) if entry.op == "recv" and entry.peer < 0 else 0.0
    )
    found = []
    for rank, (kind, at, where) in ends.items():
        came = any((own.group, own.sequence) == place for own in _last(view, view.ranks[rank]))
        since = max(at, last, entry.issued)
        found.append(Finding(kind, since, *place, (entry,), {rank: where}, entered=came and entry.peer < 0))
    return found


def _given_up(view: View, waits: dict[int, list[Wait]], now: float) -> list[Finding]:
    """Ranks that never came before those who waited for them gave up and left: a time-out of the program's
    own is shorter than the patience.
    """
    findings = []
    for rank, ones in waits.items():
        raised = view.ranks[rank].raised
        if raised is None or not view.ranks[rank].left or now - raised.issued <= NOTICED_WITHIN:
            continue
        if not brought_down(view, waits, raised):
            continue  # an error of its own
        for wait in ones:
            for absent in wait.lacks:
                if absent in waits or view.ranks[absent].left or not wait.sure or view.unconnected(absent):
                    continue
                kind = "frozen" if view.live.state(absent) in "TtS" else "stalled"
                place = (wait.entry.group, wait.entry.sequence)
                since = raised.issued + NOTICED_WITHIN
                findings.append(Finding(kind, since, *place, (wait.entry,), {absent: failed(view, absent)}))
    return joined(findings)


def broken_by(view: View, gone: Collection[int]) -> Finding | None:
    """The first call that broke with a member whose process is gone and whose records nobody has: when it
    went is not known, nor whether it had come there.
    """
    last = [entry for seen in view.ranks if seen.rank not in gone for entry in _last(view, seen)]
    broken = [entry for entry in last if _broken(entry)]
    for entry in sorted(broken, key=lambda one: one.issued):
        members = view.matching.members(entry.group.removeprefix("p2p:"))
        partners = members[entry.peer : entry.peer + 1] if entry.peer >= 0 else members
        if guilty := set(gone) & set(partners):
            place = (entry.group, entry.sequence)
            waiting = tuple(
                one for one in last if (one.group, one.sequence) == place and (one in broken or one.blocks())
            )
            since = min(one.issued for one in waiting)
            where: dict[int, Where | None] = dict.fromkeys(sorted(guilty))
            return Finding("crashed", since, *place, waiting, where)
    return None
