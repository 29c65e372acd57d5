"""A finding as a person reads it and as a program does."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from esper.lockstep.record.entry import Entry, Site

SCHEMA = "esper.lockstep.report/1"
VERDICTS = ("clean", "diverged", "failed", "inconclusive")
# Where a guilty rank may be.
STATES = (
    "in_collective", "running", "sleeping", "stopped", "silent", "exited", "raised", "killed", "differs"
)  # fmt: skip
# What two calls that meet may have otherwise: `arguments` are those that only this operation has.
COMPARED = (
    "op",
    "reduce_op",
    "root",
    "dtype",
    "shape",
    "elements",
    "tag",
    "peer",
    "ranks",
    "world_size",
    "arguments",
)


@dataclass(frozen=True)
class Waiting:
    """The collective that can't complete, and the ranks that wait in it."""

    ranks: tuple[int, ...]
    op: str | None
    reduce_op: str | None = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    site: str | None = None
    tag: str | None = None


@dataclass(frozen=True)
class GuiltyAt:
    """Where a guilty rank is instead: its state, and the operation, absolute `file:line` and tag where there
    is one.
    """

    state: str
    op: str | None = None
    site: str | None = None
    tag: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """One divergence: what, who, where on both sides, and the sentence. `seconds`: from decidable to
    decided. Not in the JSON: `starved` and `compiled`, how much longer a late rank was waited for than the
    patience, since others had the processors, and since it compiled; `fields`, what of `COMPARED` the two
    sides have otherwise, or the sentence that names a tensor or value.
    """

    kind: str
    guilty: tuple[int, ...]
    group: str
    sequence: int | None
    waiting: Waiting
    guilty_at: Mapping[int, GuiltyAt]
    seconds: float
    message: str
    starved: float = 0.0
    compiled: float = 0.0
    fields: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The record of `esper.lockstep.report/1`."""
        record = asdict(self)
        del record["starved"], record["compiled"], record["fields"]
        record["guilty_at"] = {str(rank): asdict(at) for rank, at in self.guilty_at.items()}
        return record


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended, and its last collective."""

    rank: int
    exit: int | None
    signal: int | None
    last: Mapping[str, str | None]


@dataclass(frozen=True)
class Report:
    """The outcome of a run: `verdict` is clean, diverged, failed or inconclusive."""

    verdict: str
    diagnoses: tuple[Diagnosis, ...] = ()
    ranks: tuple[RankEnd, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The whole document, schema included."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "diagnoses": [diagnosis.to_json() for diagnosis in self.diagnoses],
            "ranks": [asdict(rank) for rank in self.ranks],
        }


def site_text(site: Site | None) -> str | None:
    """Absolute `file:line`, as JSON has it."""
    return None if site is None else f"{os.path.abspath(site.file)}:{site.line}"


def short_site(site: Site | None) -> str:
    """`file.py:12  function`, as messages have it."""
    if site is None:
        return "(no line known)"
    function = site.function.replace("<locals>.", "")
    return f"{os.path.basename(site.file)}:{site.line}" + ("" if function == "<module>" else f"  {function}")


def tensor_text(entry: Entry, *, full: bool = False) -> str:
    """`float32 [1024], SUM, tag gate:r0c1`: what distinguishes one call of an operation from another; the
    reduce operation SUM goes without saying unless `full`.
    """
    parts = []
    if entry.dtype is not None and entry.op not in ("barrier", "monitored_barrier"):
        shape = entry.shape or ()
        parts.append(f"{entry.dtype} [{', '.join(map(str, shape))}]")
        if entry.elements > math.prod(shape):
            parts.append(f"{entry.elements} elements in all")
    if entry.reduce_op is not None and (full or entry.reduce_op != "SUM"):
        parts.append(entry.reduce_op)
    if entry.root >= 0:
        parts.append(f"root {entry.root}")
    if entry.peer >= 0:
        parts.append(f"{'to' if entry.op == 'send' else 'from'} rank {entry.peer}")
    if full and "to" in entry.detail:
        parts.append(f"sends {entry.detail['to']}, takes {entry.detail['from']}")
    if full and entry.op == "init_process_group":
        parts.append(str(entry.detail.get("same")))
    if "ranks" in entry.detail:
        parts.append(f"ranks {', '.join(map(str, entry.detail['ranks']))}")
    if entry.tag is not None:
        parts.append(f"tag {entry.tag}")
    return f" ({', '.join(parts)})" if parts else ""
