"""State that must be equal on all ranks and is not: replicas that differ, parameters that nobody averages."""

from __future__ import annotations

from esper.lockstep.proof.auditbook import Audit
from esper.lockstep.proof.finding import Finding, Patience, Where, ranks_text
from esper.lockstep.proof.view import View
from esper.lockstep.record.entry import Entry

# The source of an audit of parameters that a module has and its reducer has not.
LEFT_OUT = "left out"


def replica_findings(view: View, now: float, patience: Patience, *, final: bool) -> list[Finding]:
    """Drift and incomplete models that are decided."""
    findings = []
    for audit in view.audits.differing():
        sides = audit.sides()
        since = sorted(min(audit.entries[rank].issued for rank in side) for side in sides)[1]
        members = audit.members or tuple(range(len(view.ranks)))
        decided = len(sides[0]) * 2 > len(members) or len(audit.entries) == len(members)
        if decided or final or now - since > patience.running:
            findings.append(_drift(view, audit, sides, since))
            break  # what differs later may follow from this
    return findings


def _drift(view: View, audit: Audit, sides: list[list[int]], since: float) -> Finding:
    clear = len(sides[0]) > len(sides[1])
    good = sides[0] if clear else []
    bad = [rank for side in sides for rank in side if rank not in good]
    return Finding(
        "model" if audit.key.source == LEFT_OUT else "drift",
        since,
        audit.key.group,
        audit.key.position,
        tuple(audit.entries[rank] for rank in good),
        {rank: Where("differs", site=audit.entries[rank].site) for rank in bad},
        subject=_subject(view, audit, sides),
    )


def _subject(view: View, audit: Audit, sides: list[list[int]]) -> str:
    """`alpha differs: 0.5 on rank 1; 0.75 on ranks 0, 2`, or the first tensor and the ranks on each side."""
    one, other = audit.entries[sides[0][0]], audit.entries[sides[1][0]]
    name = _first_difference(view, one, other)
    if audit.key.source == LEFT_OUT:
        return f"{name} is in no reducer of {audit.key.what}, and differs between {_sides(sides)}"
    if "value" in one.detail:
        told = [f"{audit.entries[side[0]].detail.get('value')} on {ranks_text(side)}" for side in sides]
        return f"{name} differs: {'; '.join(told)}"
    owner = "" if name.startswith(audit.key.what) else f" of {audit.key.what}"
    return f"{name}{owner} differs between {_sides(sides)}"


def _sides(sides: list[list[int]]) -> str:
    return " and ".join(ranks_text(side) for side in sides)


def _first_difference(view: View, one: Entry, other: Entry) -> str:
    names = one.detail.get("names", [])
    mine, theirs = view.live.audit(one), view.live.audit(other)
    if names != other.detail.get("names"):
        pairs = zip(names, other.detail.get("names", []), strict=False)
        return next((f"{a} / {b}" for a, b in pairs if a != b), "the number of tensors")
    if mine is None or theirs is None:
        return str(one.detail.get("what", "state"))
    return str(
        next((name for name, a, b in zip(names, mine, theirs, strict=False) if a != b), "a later tensor")
    )


def model_subject(good: Entry, bad: Entry) -> str:
    """The first parameter that two constructions of one DDP model disagree on: its place, name or shape."""
    for what in ("parameter", "buffer"):
        mine, theirs = bad.detail.get(f"{what}s", []), good.detail.get(f"{what}s", [])
        for index, (here, there) in enumerate(zip(mine, theirs, strict=False)):
            if here != there:
                return (
                    f"{what} {index} of DistributedDataParallel #{bad.sequence} is {_parameter(here)} "
                    f"on rank {bad.rank} and {_parameter(there)} on rank {good.rank}"
                )
        if len(mine) != len(theirs):
            break
    return (
        f"DistributedDataParallel #{bad.sequence} has {len(mine)} {what}s on rank {bad.rank} "
        f"and {len(theirs)} on rank {good.rank}"
    )


def _parameter(named: list[object]) -> str:
    return f"{named[0]} {named[1]}"
