"""What the proof comes to, and how long a suspicion stays one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from esper.lockstep.record.entry import Entry, Site

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
    subject: str = ""  # what differs, where it is no call
    decidable: float | None = None  # when it could be told who is guilty, where that was after `since`
    starved: float = 0.0  # seconds that a late rank had no processor for, by which the patience was longer
    compiled: float = 0.0  # seconds that it compiled, by which the patience was longer, too
    # Whether the guilty had come to what the others wait in; None: nobody has what they did.
    entered: bool | None = False

    @property
    def rank_order(self) -> tuple[float, int]:
        # 1 ms is less than two causally linked events on two ranks are apart.
        return round(self.since, 3), PRECEDENCE.index(self.kind)


@dataclass(frozen=True)
class Patience:
    """How long a suspicion is only shown: seconds for a rank that runs or sleeps, and for one that is
    stopped. Of what it compiles meanwhile up to `compiling` seconds are not counted.
    """

    running: float = 2.0
    stopped: float = 0.5
    # Healthy compilations take up to some minutes; one that hangs must still be named some time.
    compiling: float = 600.0


def in_collective(entry: Entry, kind: str = "") -> Where:
    """Where a rank is that is in another collective; of one that came there by an exception also which."""
    error = entry.detail.get("error") if kind == "raised" else None
    return Where("in_collective", entry.op, entry.site, entry.tag, detail=error, entry=entry)


def joined(findings: list[Finding]) -> list[Finding]:
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
                tuple(
                    {
                        entry.rank: entry
                        for entry in (*first.waiting, *finding.waiting)
                        if entry.rank not in first.guilty | finding.guilty
                    }.values()
                ),
                first.guilty | finding.guilty,
                starved=max(first.starved, finding.starved),
                compiled=max(first.compiled, finding.compiled),
                entered=first.entered if first.entered == finding.entered else None,
            )
        )
    return list(by_slot.values())


def ranks_text(ranks: Iterable[int]) -> str:
    """`rank 2`, or `ranks 0, 1, 3`."""
    ordered = sorted(ranks)
    return f"rank {ordered[0]}" if len(ordered) == 1 else "ranks " + ", ".join(map(str, ordered))
