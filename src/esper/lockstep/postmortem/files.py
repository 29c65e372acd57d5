"""Which files a run has left, and what of them can be believed."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from esper.lockstep.errors import LedgerError
from esper.lockstep.postmortem.copied import CopiedLedger
from esper.lockstep.record.audits import audits_path, lacking
from esper.lockstep.record.entry import Kind
from esper.lockstep.record.manifest import NAME as MANIFEST
from esper.lockstep.record.manifest import Manifest
from esper.lockstep.report.verdict import NAME as VERDICT

_OF_A_RANK = re.compile(r"rank(\d{1,6})\.(ledger|strings|stacks|audits)\Z")
_MOST_RANKS = 1 << 17


@dataclass
class Witness:
    """One rank's ledger, read to its end once: when it was last heard of, by its own clock, and the groups in
    which it has a record.
    """

    ledger: CopiedLedger
    last: float = 0.0
    beats: bool = False
    ends: bool = False  # it has a record of its program's end
    groups: set[str] = field(default_factory=set)
    lacks: str | None = None  # what is wrong with its audits: a name of a tensor, and nobody's guilt


@dataclass
class Left:
    """What a run has left: the legible ledgers by rank, and a line for each file that is missing or wrong."""

    run_dir: Path
    manifest: Manifest | None
    world_size: int
    witnesses: dict[int, Witness]
    wrong: list[str]

    def close(self) -> None:
        """Let go of the copies."""
        for witness in self.witnesses.values():
            witness.ledger.close()


def run_in(folder: Path) -> tuple[Path, str]:
    """The folder of the run that is meant by `folder`: itself, or the newest attempt in it; and what to say
    of the choice. Raises LedgerError where there is none.
    """
    try:
        if _holds_run(folder):
            return folder, ""
        attempts = [path for path in folder.iterdir() if path.is_dir() and os.access(path, os.R_OK)]
        attempts = [path for path in attempts if _holds_run(path)]
    except OSError as error:
        raise LedgerError(str(folder), f"can't be read: {error.strerror or error}") from error
    if not attempts:
        raise LedgerError(str(folder), f"holds no run: neither {MANIFEST} nor a rank<R>.ledger is in it")
    newest = max(attempts, key=_started)
    several = len(attempts) > 1
    return newest, f"{newest.name}, the newest of {len(attempts)} attempts" if several else ""


def _holds_run(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return any(name in (MANIFEST, VERDICT) or _OF_A_RANK.match(name) for name in names)


def _started(attempt: Path) -> tuple[float, str]:
    try:
        manifest = Manifest.read(attempt)
    except LedgerError:
        manifest = None
    return (attempt.stat().st_mtime if manifest is None else manifest.started), attempt.name


def survey(run_dir: Path) -> Left:
    """Read all of it once. Raises nothing for what is in the files."""
    wrong: list[str] = []
    manifest = None
    try:
        manifest = Manifest.read(run_dir)
        if manifest is not None and manifest.world_size > _MOST_RANKS:
            raise LedgerError(str(run_dir / MANIFEST), f"says {manifest.world_size} ranks")
        if manifest is None:
            wrong.append(f"{MANIFEST} is missing")
    except LedgerError as error:
        manifest = None
        wrong.append(_line(error))
    present = _ranks_of_files(run_dir)
    ledgers: dict[int, CopiedLedger] = {}
    unread: dict[int, str] = {}
    for rank in present if manifest is None else sorted({*present, *range(manifest.world_size)}):
        try:
            ledgers[rank] = CopiedLedger(run_dir, rank)
        except LedgerError as error:
            unread[rank] = _line(error)
    world_size = manifest.world_size if manifest else _told(ledgers, present)
    for rank in [rank for rank in (*ledgers, *unread) if rank >= world_size]:  # in nobody's way
        unread.pop(rank, None)
        if rank in ledgers:
            ledgers.pop(rank).close()
    for rank in range(world_size):
        if rank not in ledgers:
            unread.setdefault(rank, f"rank{rank}.ledger is missing")
    foreign = dict(_foreign(ledgers, manifest, world_size))
    witnesses = {}
    for rank, ledger in ledgers.items():
        try:
            if rank not in foreign:
                witnesses[rank] = _witness(ledger)
                continue
        except LedgerError as error:
            foreign[rank] = _line(error)
        ledger.close()
    by_rank = unread | foreign
    wrong += [f"rank{rank}.audits {one.lacks}" for rank, one in witnesses.items() if one.lacks]
    wrong += [by_rank[rank] + _host(manifest, rank) for rank in sorted(by_rank)]
    return Left(run_dir, manifest, world_size, witnesses, wrong)


def _ranks_of_files(run_dir: Path) -> list[int]:
    found = (_OF_A_RANK.match(path.name) for path in run_dir.iterdir())
    return sorted({int(match[1]) for match in found if match is not None})


def _told(ledgers: dict[int, CopiedLedger], present: list[int]) -> int:
    """How many ranks most ledgers say there are; without any, as many as have files."""
    told = Counter(one.world_size for one in ledgers.values() if 0 < one.world_size <= _MOST_RANKS)
    return told.most_common(1)[0][0] if told else max(present, default=-1) + 1


def _foreign(
    ledgers: dict[int, CopiedLedger], manifest: Manifest | None, world_size: int
) -> Iterator[tuple[int, str]]:
    """The ledgers that are not of this run, and how that is seen."""
    told = Counter(ledger.run.hex() for ledger in ledgers.values())
    run, most = told.most_common(1)[0] if told else ("", 0)
    agreed = most * 2 > len(ledgers)
    for rank, ledger in ledgers.items():
        name, own = ledger.path.name, ledger.run.hex()
        if manifest is not None and own != manifest.run:
            yield rank, f"{name} is of another run: {_id(own)}, and {MANIFEST} says {_id(manifest.run)}"
        elif not agreed:
            yield rank, f"{name} is of run {_id(own)}, and most of the others are of other runs"
        elif own != run:
            yield rank, f"{name} is of another run: {_id(own)}, and most of the others are of {_id(run)}"
        elif ledger.world_size != world_size:
            yield rank, f"{name} is of a run of {ledger.world_size} ranks, and this one has {world_size}"


def _id(run: str) -> str:
    return run[:8] or "one without an id"


def _witness(ledger: CopiedLedger) -> Witness:
    """What a ledger comes to. Raises LedgerError where anything in it has lost its meaning: a proof from the
    rest might name the wrong rank.
    """
    witness = Witness(ledger, ledger.heartbeat())
    witness.beats = witness.last > 0.0
    audited = False
    table = ledger.path.with_suffix(".strings")
    if not table.exists():
        raise LedgerError(str(table), "is missing")
    for entry in ledger.records():
        if entry.kind is Kind.COLLECTIVE:
            witness.groups.add(entry.group)
        leaves = entry.kind in (Kind.RAISED, Kind.EXIT) and bool(entry.detail.get("leaves"))
        witness.ends = witness.ends or leaves or entry.kind is Kind.OVER
        audited = audited or entry.kind is Kind.AUDIT
        witness.last = max(witness.last, *entry.times[:4])
    if not (math.isfinite(witness.last) and math.isfinite(ledger.clock_offset)):
        raise LedgerError(str(ledger.path), "has a time that no clock shows")
    run = ledger.table_run() if ledger.run else None
    if run is not None and run != ledger.run.hex():
        raise LedgerError(str(table), f"is of another run: {_id(run)}")
    if ledger.unknown or (ledger.run and run is None):
        raise LedgerError(str(table), "is cut, or its disk was full: records refer to what is not in it")
    if audited and (lacks := lacking(audits_path(ledger.path.parent, ledger.rank))) is not None:
        witness.lacks = lacks
    return witness


def _line(error: LedgerError) -> str:
    return f"{Path(error.path).name} {error.reason}"


def _host(manifest: Manifest | None, rank: int) -> str:
    if manifest is None or len(set(manifest.hosts.values())) < 2 or rank not in manifest.hosts:
        return ""
    return f" (its rank was on {manifest.hosts[rank]})"
