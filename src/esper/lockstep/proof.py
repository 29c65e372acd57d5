"""Which collective can never complete, and who is guilty: pure rules over what the ledgers say.

Each rule yields findings; the earliest wins and precedence breaks ties. A finding is only made when it is
*decided*: a contradiction whose guilty side is still open yields nothing, and withholds everything that may
be its consequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from esper.lockstep.entry import Entry, Flag, Site
from esper.lockstep.matching import Slot, Wait, signature
from esper.lockstep.needs import certain
from esper.lockstep.view import View

PRECEDENCE = (
    "crashed",
    "raised",
    "exited",
    "group",
    "order",
    "mismatch",
    "peer",
    "wait_cycle",
    "missing",
    "model",
    "drift",
    "frozen",
    "stalled",
)
SUSPECTED = ("frozen", "stalled")
_SIGABRT = -6
_NOTICED_WITHIN = 0.2  # seconds from a process's death to its pidfd being read, with both cores loaded


@dataclass(frozen=True)
class Where:
    """Where a guilty rank is instead."""

    state: str
    op: str | None = None
    site: Site | None = None
    tag: str | None = None
    detail: str | None = None
    entry: Entry | None = None  # the other collective, where it is in one


@dataclass(frozen=True)
class Finding:
    """One doomed collective: since when (CLOCK_MONOTONIC seconds) it is decidable, who waits and who is
    guilty.
    """

    kind: str
    since: float
    group: str
    sequence: int
    waiting: tuple[Entry, ...]
    guilty: dict[int, Where | None]

    @property
    def rank_order(self) -> tuple[float, int]:
        # 1 ms is less than two causally linked events on two ranks are apart.
        return round(self.since, 3), PRECEDENCE.index(self.kind)


@dataclass(frozen=True)
class Patience:
    """How long a suspicion is only shown: seconds for a rank that runs or sleeps, and for one that is
    stopped.
    """

    running: float = 2.0
    stopped: float = 0.5


def prove(view: View, now: float, patience: Patience, *, final: bool = False) -> Finding | None:
    """The earliest decided finding, or None. `final`: no rank will write anything more."""
    waits = view.waits()
    mismatches, undecided = _mismatches(view, waits, now, patience, final)
    findings = mismatches + _gone(view, waits, undecided)
    if not findings and not undecided:
        findings = _cycles(view, waits) or _suspects(view, waits, now, patience)
    return min(findings, key=lambda finding: finding.rank_order, default=None)


def _mismatches(
    view: View, waits: dict[int, list[Wait]], now: float, patience: Patience, final: bool
) -> tuple[list[Finding], set[int]]:
    """Decided contradictions, and the ranks in one whose guilt is still open."""
    findings: list[Finding] = []
    undecided: set[int] = set()
    seen: set[str] = set()
    for slot in view.matching.open():
        if slot.group in seen or len(sides := slot.sides()) < 2:
            continue
        seen.add(slot.group)  # what follows in this group is a consequence
        majority = len(sides[0]) * 2 > len(slot.members)
        # The contradiction exists since the second side came.
        since = sorted(min(slot.entries[rank].issued for rank in side) for side in sides)[1]
        parties = set(slot.entries)
        if (
            majority
            or final
            or now - since > patience.running
            or all(_cannot_come(view, waits, rank, parties) for rank in slot.absent)
        ):
            findings.append(_mismatch(view, slot, sides, since))
        else:
            undecided |= parties
    return findings, undecided


def _cannot_come(view: View, waits: dict[int, list[Wait]], rank: int, parties: set[int]) -> bool:
    """Whether an absent rank's vote can never come: it is gone, or it waits for one of the contradicting
    parties.
    """
    seen = view.ranks[rank]
    if seen.ended is not None or seen.over is not None:
        return True
    blocked = [wait for wait in waits.get(rank, ()) if wait.entry.blocks()]
    return any(
        parties & set(certain(wait, view.matching.members(wait.entry.group))) for wait in blocked
    ) and _all_threads_blocked(view, rank, blocked)


def _mismatch(view: View, slot: Slot, sides: list[list[int]], since: float) -> Finding:
    clear = len(sides[0]) > len(sides[1])
    good = sides[0] if clear else []
    bad = [rank for side in sides for rank in side if rank not in good]
    waiting = tuple(slot.entries[rank] for rank in (good or bad))
    kind = "mismatch"
    if len(bad) == 1 and good and _swapped(view, slot, bad[0], good[0]):
        kind = "order"
    elif good and any(slot.entries[rank].times.flags & Flag.UNWINDING for rank in bad):
        kind = "raised"  # a clean-up collective in `finally`: the exception is the cause
    return Finding(
        kind, since, slot.group, slot.sequence, waiting, {rank: _at(slot.entries[rank]) for rank in bad}
    )


def _swapped(view: View, slot: Slot, one: int, other: int) -> bool:
    """Whether the two ranks' next entries are each other's."""
    following = view.matching.slot(slot.group, slot.sequence + 1)
    if following is None or one not in following.entries or other not in following.entries:
        return False
    mine, theirs = following.entries[one], following.entries[other]
    return (signature(mine), mine.tag) == (signature(slot.entries[other]), slot.entries[other].tag) and (
        signature(theirs),
        theirs.tag,
    ) == (signature(slot.entries[one]), slot.entries[one].tag)


def _gone(view: View, waits: dict[int, list[Wait]], undecided: set[int]) -> list[Finding]:
    """Ranks that others wait for and that can't come any more."""
    findings: dict[tuple[str, int, int], Finding] = {}
    for rank_waits in waits.values():
        for wait in rank_waits:
            group = wait.entry.group.removeprefix("p2p:")
            for rank in wait.lacks:
                key = (wait.entry.group, wait.entry.sequence, rank)
                if rank in undecided or key in findings:
                    continue
                terminal = _terminal(view, waits, rank, group)
                if terminal is None:
                    continue
                kind, at, where = terminal
                waiting = tuple(
                    entry for entry in _companions(waits, wait, rank) if _outlasted(entry, at, view, rank)
                )
                if not waiting:
                    continue
                since = max(at, min(entry.issued for entry in waiting))
                findings[key] = Finding(
                    kind, since, wait.entry.group, wait.entry.sequence, waiting, {rank: where}
                )
    return _joined(list(findings.values()))


def _outlasted(entry: Entry, at: float, view: View, rank: int) -> bool:
    """Whether the wait went on until `rank` was gone: one that was given up before is the program's own
    affair.
    """
    ended = view.ranks[rank].ended
    # A death is noticed a little after the peers' connections broke.
    noticed_late = _NOTICED_WITHIN if ended is not None and ended.at == at else 0.0
    return entry.times.wait_ended == 0.0 or entry.times.wait_ended > at - noticed_late


def _joined(findings: list[Finding]) -> list[Finding]:
    """Several ranks missing from one collective for one reason are one finding."""
    by_slot: dict[tuple[str, str, int], Finding] = {}
    for finding in sorted(findings, key=lambda one: one.since):
        key = (finding.kind, finding.group, finding.sequence)
        first = by_slot.get(key)
        by_slot[key] = (
            finding
            if first is None
            else Finding(
                first.kind,
                first.since,
                first.group,
                first.sequence,
                tuple(entry for entry in first.waiting if entry.rank not in finding.guilty),
                first.guilty | finding.guilty,
            )
        )
    return list(by_slot.values())


def _terminal(
    view: View, waits: dict[int, list[Wait]], rank: int, group: str
) -> tuple[str, float, Where] | None:
    """(kind, since, where) of a rank that can enter nothing in `group` any more; None while it can, or is a
    victim.
    """
    seen = view.ranks[rank]
    raised = seen.raised
    leaves = raised is not None and (seen.over is not None or raised.detail["leaves"])
    if raised is not None and (leaves or seen.ended is not None):
        if raised.detail.get("victim") or _in_native_wait(waits, rank):
            return None  # a peer's end broke its collective
        text = f"{raised.detail['type']}: {raised.detail['text']}"
        return "raised", raised.issued, Where("raised", site=raised.site, detail=text)
    if seen.ended is not None and seen.ended.code < 0:
        if seen.ended.code == _SIGABRT and waits.get(rank):
            return None  # gloo aborts a rank on a size that its peer got wrong
        return (
            "crashed",
            seen.ended.at,
            Where("killed", site=seen.last.site if seen.last else None, detail=f"signal {-seen.ended.code}"),
        )
    if seen.exit is not None and (seen.ended is not None or seen.exit.detail["leaves"]):
        return (
            "exited",
            seen.exit.issued,
            Where("exited", site=seen.exit.site, detail=f"status {seen.exit.detail.get('code')}"),
        )
    if seen.ended is not None:
        return (
            "exited",
            seen.ended.at,
            Where("exited", site=seen.last.site if seen.last else None, detail=f"status {seen.ended.code}"),
        )
    if group in seen.destroyed:
        destroyed = seen.destroyed[group]
        return "missing", destroyed.issued, Where("running", "destroy_process_group", destroyed.site)
    if seen.over is not None:
        return (
            "missing",
            seen.over.issued,
            Where("exited", site=seen.last.site if seen.last else None, detail="its program is over"),
        )
    return None


def _in_native_wait(waits: dict[int, list[Wait]], rank: int) -> bool:
    """An exception out of a backward whose reducer call is pending is what a peer did to it."""
    return any(wait.entry.native for wait in waits.get(rank, ()))


def _companions(waits: dict[int, list[Wait]], wait: Wait, guilty: int) -> tuple[Entry, ...]:
    """Everyone who waits in the same collective."""
    place = (wait.entry.group, wait.entry.sequence)
    return tuple(
        other.entry
        for rank, ones in sorted(waits.items())
        if rank != guilty
        for other in ones
        if (other.entry.group, other.entry.sequence) == place
    )


def _all_threads_blocked(view: View, rank: int, blocked: list[Wait]) -> bool:
    """Whether every Python thread of the rank is in a wait; a thread that only might issue something is no
    proof.
    """
    threads = {wait.entry.thread for wait in blocked}
    # An op of the reducer is waited for from its issue, though the backward may still be computing.
    return view.live.threads(rank) <= len(threads) and all(
        not wait.entry.native or view.live.asleep(wait.entry) for wait in blocked
    )


def _cycles(view: View, waits: dict[int, list[Wait]]) -> list[Finding]:
    """Ranks that wait for each other in different groups."""
    edges: dict[int, set[int]] = {}
    current: dict[int, Entry] = {}
    for rank, ones in waits.items():
        blocked = [wait for wait in ones if wait.entry.blocks()]
        needed = {peer for wait in blocked for peer in certain(wait, _members(view, wait.entry))}
        if needed and view.ranks[rank].ended is None and _all_threads_blocked(view, rank, blocked):
            edges[rank] = needed
            current[rank] = max((wait.entry for wait in blocked), key=lambda entry: entry.issued)
    circle = [rank for rank in edges if _reaches(edges, rank, rank)]
    if not circle:
        return []
    places: dict[tuple[str, int], list[int]] = {}
    for rank in circle:
        places.setdefault((current[rank].group, current[rank].sequence), []).append(rank)
    sides = sorted(places.values(), key=len, reverse=True)
    good = sides[0] if len(sides) > 1 and len(sides[0]) > len(sides[1]) else []
    bad = [rank for rank in circle if rank not in good]
    waiting = tuple(current[rank] for rank in (good or bad))
    since = max(current[rank].issued for rank in circle)
    return [
        Finding(
            "wait_cycle",
            since,
            waiting[0].group,
            waiting[0].sequence,
            waiting,
            {rank: _at(current[rank]) for rank in bad},
        )
    ]


def _members(view: View, entry: Entry) -> tuple[int, ...]:
    return view.matching.members(entry.group.removeprefix("p2p:"))


def _reaches(edges: dict[int, set[int]], start: int, goal: int) -> bool:
    seen: set[int] = set()
    todo = [start]
    while todo:
        for following in edges.get(todo.pop(), ()):
            if following == goal:
                return True
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return False


def _suspects(view: View, waits: dict[int, list[Wait]], now: float, patience: Patience) -> list[Finding]:
    """Ranks that others have waited for longer than the patience, and that wait for nobody themselves."""
    late: dict[int, list[Entry]] = {}
    for ones in waits.values():
        for wait in ones:
            for rank in wait.lacks:
                if rank not in waits and view.ranks[rank].ended is None:
                    late.setdefault(rank, []).append(wait.entry)
    findings = []
    for rank, entries in late.items():
        state = view.live.state(rank)
        allowed = patience.stopped if state in "Tt" else patience.running
        last = view.ranks[rank].last
        since = max(min(entry.issued for entry in entries), last.issued if last is not None else 0.0)
        if now - since > allowed:
            first = min(entries, key=lambda entry: entry.issued)
            place = (first.group, first.sequence)
            waiting = tuple(entry for entry in entries if (entry.group, entry.sequence) == place)
            kind = "frozen" if state in "TtSD" else "stalled"
            findings.append(Finding(kind, since + allowed, *place, waiting, {rank: None}))
    return _joined(findings)


def _at(entry: Entry) -> Where:
    return Where("in_collective", entry.op, entry.site, entry.tag, entry=entry)
