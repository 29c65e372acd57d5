"""Which collective can never complete, and who is guilty: pure rules over what the ledgers say.

Each rule yields findings; the earliest wins and precedence breaks ties. A finding is only made when it is
*decided*: a contradiction whose guilty side is still open yields nothing, and withholds everything that may
be its consequence.
"""

from __future__ import annotations

from esper.lockstep.proof.cycles import asleep, cycles, needs_of
from esper.lockstep.proof.drift import model_subject, replica_findings
from esper.lockstep.proof.finding import Finding, Patience, in_collective
from esper.lockstep.proof.gone import gone
from esper.lockstep.proof.mailbox import Wait
from esper.lockstep.proof.matching import Slot, signature
from esper.lockstep.proof.suspicion import suspects, unexplained
from esper.lockstep.proof.view import View
from esper.lockstep.record.entry import Flag

# What ranks make in step, though it is no collective: kind of a contradiction in it.
_MADE_TOGETHER = {"new_group": "group", "init_process_group": "group", "DistributedDataParallel": "model"}

# Until then a swap is waited for: seconds, from one call that the backend took to the next one.
_NEXT_WITHIN = 0.15

__all__ = ["Finding", "Patience", "only_time_decides", "prove"]


def prove(
    view: View, now: float, patience: Patience, *, final: bool = False, whole: bool = True
) -> Finding | None:
    """The earliest decided finding, or None. `final`: no rank will write anything more. Not `whole`: what
    some rank did is not known, so nobody is named for what may have come of that.
    """
    waits = view.waits()
    findings, undecided = mismatches(view, waits, now, patience, final)
    findings += misfits(view)
    findings += gone(view, waits, undecided, now)
    findings += replica_findings(view, now, patience, final=final)
    if not findings and not undecided:
        findings = cycles(view, waits, now, patience)
        if not findings and whole:
            findings = suspects(view, waits, now, patience) or unexplained(view, waits, now, patience, final)
    return min(findings, key=lambda finding: finding.rank_order, default=None)


def only_time_decides(view: View) -> bool:
    """Whether `prove` can find nothing now but what a patience decides: no rank has left anything, nothing
    contradicts, and whoever waits does so in the collectives of one group, whose order all share.

    A small part of a proof's cost, and true of a healthy program most of the time.
    """
    left = any(seen.left or seen.raised or seen.exit or seen.destroyed for seen in view.ranks)
    return not (left or any(view.audits.differing())) and view.matching.in_one_order()


def misfits(view: View) -> list[Finding]:
    """Two ranks that met with sizes that don't fit: gloo aborts the receiver for it. Either may be wrong."""
    return [
        Finding(
            "mismatch",
            max(one.issued, other.issued),
            other.group,
            other.sequence,
            (other, one),
            {entry.rank: in_collective(entry) for entry in (one, other)},
        )
        for one, other in view.matching.misfits()
    ]


def mismatches(
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
            any(not view.ranks[rank].left for rank in view.matching.offered(slot))
            and not final
            and now - since <= patience.running
        ):
            undecided |= parties
        elif (
            majority
            or final
            or now - since > patience.running
            or all(_cannot_come(view, waits, rank, parties) for rank in slot.absent)
        ):
            if final or now - since > _NEXT_WITHIN or not _next_may_tell(view, slot, sides):
                findings.append(_mismatch(view, slot, sides, since))
            else:
                undecided |= parties
        else:
            undecided |= parties
    return findings, undecided


def _next_may_tell(view: View, slot: Slot, sides: list[list[int]]) -> bool:
    """Whether the sides' next calls may still show a swap: only tags differ, so the backend lets them go
    on.
    """
    one, other = sides[0][0], sides[1][0]
    if signature(slot.entries[one]) != signature(slot.entries[other]):
        return False
    following = view.matching.slot(slot.group, slot.sequence + 1)
    known = following.entries.keys() if following is not None else set()
    return any(rank not in known and not view.ranks[rank].left for rank in (one, other))


def _cannot_come(view: View, waits: dict[int, list[Wait]], rank: int, parties: set[int]) -> bool:
    """Whether an absent rank's vote can never come: it is gone, or it waits for one of the contradicting
    parties.
    """
    if view.ranks[rank].left:
        return True
    needs = needs_of(view, waits.get(rank, ()))
    return bool(needs) and all(one.held_by(parties) for one in needs) and asleep(view, needs)


def _mismatch(view: View, slot: Slot, sides: list[list[int]], since: float) -> Finding:
    clear = len(sides[0]) > len(sides[1])
    good = sides[0] if clear else []
    bad = [rank for side in (sides[1:] if clear else sides) for rank in side]
    waiting = tuple(slot.entries[rank] for rank in (good or bad))
    kind = "mismatch"
    if (op := next(iter(slot.entries.values())).op) in _MADE_TOGETHER:
        kind = _MADE_TOGETHER[op]
    elif len(bad) == 1 and good and _swapped(view, slot, bad[0], good[0]):
        kind = "order"
    elif good and any(slot.entries[rank].times.flags & Flag.UNWINDING for rank in bad):
        kind = "raised"  # a clean-up collective in `finally`: the exception is the cause
    subject = model_subject(slot.entries[sides[0][0]], slot.entries[sides[1][0]]) if kind == "model" else ""
    return Finding(
        kind,
        since,
        slot.group,
        slot.sequence,
        waiting,
        {rank: in_collective(slot.entries[rank], kind) for rank in bad},
        subject=subject,
        decidable=_decidable(slot, sides, since),
    )


def _decidable(slot: Slot, sides: list[list[int]], since: float) -> float:
    """When the vote came that decided: the one that made a majority of all, or the last of all."""
    came = sorted(slot.entries[rank].issued for rank in sides[0])
    half = len(slot.members) // 2
    if len(came) > half:
        return max(since, came[half])
    return max(entry.issued for entry in slot.entries.values()) if slot.complete else since


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
