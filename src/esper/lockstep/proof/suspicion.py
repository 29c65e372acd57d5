"""What can't be proved and is judged by patience: a late rank, and a standstill that no rule explains."""

from __future__ import annotations

from dataclasses import dataclass

from esper.lockstep.proof.finding import Finding, Patience, Where, in_collective, joined
from esper.lockstep.proof.gone import terminal
from esper.lockstep.proof.mailbox import Wait
from esper.lockstep.proof.victims import failed, not_connected, victims
from esper.lockstep.proof.view import View
from esper.lockstep.proof.waitgraph import on_circles
from esper.lockstep.record.entry import Entry


@dataclass(frozen=True)
class Late:
    """A rank that others wait for, and that waits for nobody itself; who waits in what, since when."""

    rank: int
    since: float
    entries: tuple[tuple[float, Entry], ...]


def late(view: View, waits: dict[int, list[Wait]], now: float) -> list[Late]:
    """The ranks that others wait for at this moment."""
    awaited: dict[int, list[tuple[float, Entry]]] = {}
    for begun, wait in _waiting(view, waits, now):
        for rank in wait.lacks:
            if rank not in waits and view.ranks[rank].ended is None:
                awaited.setdefault(rank, []).append((begun, wait.entry))
    # Late is only who could have come: not while it waited for others itself.
    return [
        Late(rank, max(min(begun for begun, _ in entries), _active(view, rank)), tuple(entries))
        for rank, entries in awaited.items()
    ]


def _waiting(view: View, waits: dict[int, list[Wait]], now: float) -> list[tuple[float, Wait]]:
    """Every wait that lasts, and since when: the dead wait for nobody, though their records say so."""
    return [
        (begun, wait)
        for rank, ones in waits.items()
        for wait in (() if view.ranks[rank].left else ones)
        if (begun := wait.entry.waiting_since(now)) is not None
    ]


def suspects(view: View, waits: dict[int, list[Wait]], now: float, patience: Patience) -> list[Finding]:
    """Ranks that others have waited for longer than the patience, and that wait for nobody themselves."""
    findings = []
    for one in late(view, waits, now):
        rank, since, entries = one.rank, one.since, one.entries
        letter, stopped = view.live.state(rank), view.live.stopped_since(rank)
        if stopped is None and view.unconnected(rank):
            continue  # what keeps it there is torch's: a peer's address that is no longer true, say
        # It can't come while others have the processors: that time is not its own.
        starved = view.live.starved(rank, since)
        compiled = _compiled(view, rank, since, patience)
        allowed = patience.running + starved + compiled
        if stopped is not None and max(since, stopped) + patience.stopped < since + allowed:
            allowed = max(since, stopped) + patience.stopped - since
        if now - since > allowed:
            first = min(entries, key=lambda one: one[0])[1]
            place = (first.group, first.sequence)
            waiting = tuple(entry for _, entry in entries if (entry.group, entry.sequence) == place)
            kind = "frozen" if letter in "TtS" else "stalled"
            raised = failed(view, rank)
            if raised is not None and stopped is None:
                kind = "raised"
            guilty = {rank: raised}
            findings.append(
                Finding(kind, since + allowed, *place, waiting, guilty, starved=starved, compiled=compiled)
            )
    return joined(findings)


def _compiled(view: View, rank: int, since: float, patience: Patience) -> float:
    """Seconds of its lateness that are the compiler's: how long that takes is not the program's to say."""
    return min(view.live.compiled(rank, since), patience.compiling)


def _active(view: View, rank: int) -> float:
    """When the rank last issued a collective or came back from its last one."""
    last = view.ranks[rank].last
    if last is None:
        return 0.0
    fresh = view.refresh(last) or last
    return max(fresh.issued, fresh.times.wait_ended)


def unexplained(
    view: View, waits: dict[int, list[Wait]], now: float, patience: Patience, final: bool
) -> list[Finding]:
    """What nobody is late for and no rule has proved, though it lasts."""
    return (
        victims(view, waits, now, patience, final)
        or _stopped_inside(view, now, patience)
        or _ended_inside(view, waits, now, patience)
        or _standstill(view, waits, now, patience)
    )


def _stopped_inside(view: View, now: float, patience: Patience) -> list[Finding]:
    """Ranks that were stopped with their part under way in what all have entered, and whom others wait for
    therefore.
    """
    stops = {
        seen.rank: since for seen in view.ranks if (since := view.live.stopped_since(seen.rank)) is not None
    }
    if all(now - since <= patience.stopped for since in stops.values()):
        return []
    findings = []
    for together in view.matching.perhaps_under_way():
        under_way = [
            fresh
            for entry in together
            if (fresh := view.refresh(entry)) is not None and not _came_back(fresh)
        ]
        # It may not wait for its own part yet.
        guilty = {entry.rank: stops[entry.rank] for entry in under_way if entry.rank in stops}
        inside = {
            entry.rank: entry for entry in under_way if entry.rank not in stops and _still_inside(view, entry)
        }
        if not guilty or not inside:
            continue
        waiting = tuple(entry for _, entry in sorted(inside.items()))
        begun = min(entry.waiting_since(now) or now for entry in waiting)
        since = max(begun, *(entry.issued for entry in under_way), *guilty.values())
        if now - since > patience.stopped:
            where: dict[int, Where | None] = dict.fromkeys(guilty)
            place = (waiting[0].group, waiting[0].sequence)
            findings.append(Finding("frozen", since + patience.stopped, *place, waiting, where))
    return findings


def _ended_inside(view: View, waits: dict[int, list[Wait]], now: float, patience: Patience) -> list[Finding]:
    """Ranks whose process ended in the making of a group that all had begun. Any other call breaks for those
    who are in it; here gloo may wait to be called by the rank that is gone.
    """
    if all(seen.ended is None for seen in view.ranks):
        return []
    findings = []
    for together in view.matching.perhaps_under_way():
        under_way = [
            fresh
            for entry in together
            if entry.op == "new_group" and (fresh := view.refresh(entry)) is not None and fresh.blocks()
        ]
        waiting = tuple(entry for entry in under_way if not view.ranks[entry.rank].left)
        ends = {
            entry.rank: end
            for entry in under_way
            if view.ranks[entry.rank].ended is not None
            and (end := terminal(view, waits, entry.rank, entry.group, excuse=True)) is not None
        }
        if not waiting or not ends:
            continue
        rank, (kind, at, where) = min(ends.items(), key=lambda end: end[1][1])
        since = max(at, *(entry.issued for entry in waiting))
        if now - since > patience.running:
            guilty: dict[int, Where | None] = {rank: where}
            place = (waiting[0].group, waiting[0].sequence)
            findings.append(Finding(kind, since + patience.running, *place, waiting, guilty))
    return joined(findings)


def _came_back(entry: Entry) -> bool:
    ended = entry.times.wait_ended or entry.times.done
    return ended != 0.0 and not entry.blocks()


def _still_inside(view: View, entry: Entry) -> bool:
    # The end of a wait in C++ need not be recorded, but nothing follows it while it lasts.
    return entry.blocks() and (
        not entry.native or view.ranks[entry.rank].last_of_thread[entry.thread].number == entry.number
    )


def _standstill(view: View, waits: dict[int, list[Wait]], now: float, patience: Patience) -> list[Finding]:
    """Ranks that all wait for each other, as it seems: a thread, a time-out or the backend's buffers leave a
    doubt.
    """
    stuck = _waiting(view, waits, now)
    ranks = {wait.entry.rank for _, wait in stuck} | {rank for _, wait in stuck for rank in wait.lacks}
    if not stuck or late(view, waits, now):
        return []  # somebody is only late
    since = max([begun for begun, _ in stuck] + [_active(view, rank) for rank in ranks])
    # A thread that compiles may still come.
    allowed = patience.running + max(_compiled(view, rank, since, patience) for rank in ranks)
    if now - since <= allowed:
        return []
    first = min(stuck, key=lambda one: one[0])[1]
    place = (first.entry.group, first.entry.sequence)
    waiting = tuple(wait.entry for _, wait in stuck if (wait.entry.group, wait.entry.sequence) == place)
    guilty: dict[int, Where | None] = {}
    edges: dict[int, set[int]] = {}
    for _, wait in stuck:
        edges.setdefault(wait.entry.rank, set()).update(wait.lacks)
    alive = [rank for rank in first.lacks if view.ranks[rank].ended is None]
    for rank in on_circles(edges) or alive or first.lacks:
        own = [wait.entry for _, wait in stuck if wait.entry.rank == rank]
        guilty[rank] = in_collective(max(own, key=lambda entry: entry.issued)) if own else None
    if all(not_connected(view, rank, place[0]) for rank in guilty):
        return []
    return [Finding("stalled", since + allowed, *place, waiting, guilty)]
