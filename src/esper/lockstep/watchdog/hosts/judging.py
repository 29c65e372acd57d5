"""What the parcels of all hosts come to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from esper.lockstep.postmortem.files import survey
from esper.lockstep.proof.finding import Finding, Patience, Where
from esper.lockstep.proof.prove import prove
from esper.lockstep.proof.victims import broken_by
from esper.lockstep.record.audits import audits_path
from esper.lockstep.record.ledger import ledger_path
from esper.lockstep.record.manifest import Manifest
from esper.lockstep.report.diagnosis import Report
from esper.lockstep.report.message import diagnosis_of
from esper.lockstep.report.outcome import report_of
from esper.lockstep.watchdog.hosts.collected import Collected
from esper.lockstep.watchdog.hosts.parcel import Parcel


@dataclass(frozen=True)
class Evidence:
    """All that there is for one judgement: of each host its parcel, or since when it is silent, or when its
    only rank was last heard of that is gone; times by the clock of the host that judges.
    """

    parcels: Mapping[int, Parcel]
    silent: Mapping[int, float]
    ahead: Mapping[int, float]  # by host: how far its clock is
    gone: Mapping[int, float] = field(default_factory=dict)
    whole: bool = True  # False: some parcel is older than the others, and nobody is late by it


def judge(
    evidence: Evidence,
    *,
    now: float,
    manifest: Manifest,
    hosts: Sequence[Sequence[int]],
    folder: Path,
    patience: float,
    starved: Callable[[int, float], float],
    why: str = "",
) -> tuple[Finding, Report] | None:
    """What is proved, or is late by that patience; None: nothing. `hosts`: the ranks of each; `folder`: where
    there is room; `why` nothing is heard of who is silent, where that is known. Raises OSError where there is
    no room.
    """
    behind = {rank: -evidence.ahead[host] for host in evidence.parcels for rank in hosts[host]}
    silent = {rank: since for host, since in evidence.silent.items() for rank in hosts[host]}
    gone = {rank: at for host, at in evidence.gone.items() for rank in hosts[host]}
    facts = {rank: one for parcel in evidence.parcels.values() for rank, one in parcel.facts.items()}
    entered = {rank: one for parcel in evidence.parcels.values() for rank, one in parcel.entered.items()}
    if any(one.stopped for one in facts.values()):
        return None  # what that one does now nobody records
    with tempfile.TemporaryDirectory(dir=folder, prefix=".collected.") as place:
        scratch = Path(place)
        manifest.write(scratch)
        for parcel in evidence.parcels.values():
            for rank, contents in parcel.files.items():
                path = ledger_path(scratch, rank)
                names = (path, path.with_suffix(".strings"), audits_path(scratch, rank))
                for name, content in zip(names, contents, strict=False):
                    name.write_bytes(content)
        left = survey(scratch)
        try:
            seen = Collected(
                left,
                now,
                behind=behind,
                entered=entered,
                facts=facts,
                silent=silent,
                gone=gone,
                starved=starved,
            )
            unrecorded = gone.keys() - left.witnesses.keys()
            unheard = silent.keys() | unrecorded
            # A silent rank is one of whom nothing is known, and yet late: whom else it keeps is late for it.
            whole = (
                evidence.whole
                and len(left.witnesses.keys() | unheard) == left.world_size
                and seen.view.matching.unreadable <= unheard
            )
            seen.view.holds_back = True
            finding = prove(seen.view, now, Patience(patience, patience), whole=whole)
            finding = finding or broken_by(seen.view, unrecorded)
            if finding is None:
                return None
            guilty = {
                rank: _where(seen, manifest, rank, where, now, why) for rank, where in finding.guilty.items()
            }
            diagnosis = diagnosis_of(
                replace(
                    finding, guilty=guilty, entered=None if guilty.keys() & unrecorded else finding.entered
                ),
                decided=now,
                last_settled=seen.view.matching.last_settled(finding.group.removeprefix("p2p:")),
            )
            return finding, report_of("diverged", seen.view.ranks, diagnosis)
        finally:
            left.close()


def same(one: Finding, other: Finding) -> bool:
    """Whether two judgements come to the same."""
    return (one.kind, one.group, one.sequence, one.guilty.keys()) == (
        other.kind,
        other.group,
        other.sequence,
        other.guilty.keys(),
    )


def lacking_lines(finding: Finding) -> list[int]:
    """The guilty ranks whose records do not say where they are."""
    return [rank for rank, where in finding.guilty.items() if _lacks_line(where)]


def _lacks_line(where: Where | None) -> bool:
    return where is None or where.state == "killed" or (where.state == "running" and where.site is None)


def _where(
    seen: Collected, manifest: Manifest, rank: int, where: Where | None, now: float, why: str
) -> Where | None:
    """Where a guilty rank is, of whom its records say only that it did not come, or that it has gone."""
    if rank in seen.silent:
        seconds = now - seen.silent[rank]
        return Where("silent", detail=f"nothing was heard of {manifest.hosts[rank]} for {seconds:.1f} s{why}")
    if rank not in seen.facts:
        ago = now - seen.gone[rank]
        return Where(
            "killed",
            detail=f"its connections are closed; {manifest.hosts[rank]} was heard of {ago:.1f} s ago",
        )
    facts = seen.facts[rank]
    if where is not None and where.state == "killed":
        return replace(where, site=facts.site or where.site)
    if where is None or _lacks_line(where):
        last = seen.view.ranks[rank].last
        name = "running" if facts.line is None else facts.line[0]
        return Where(name, site=facts.site or (last.site if last else None))
    return where
