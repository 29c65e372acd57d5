"""The plan of one test, as frozen data: how many ranks, which faults, what is to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One injected fault: what, on which rank, and at which of the places that it fits.

    `nth` counts from 1 the calls that match the other coordinates; None is the first.
    """

    kind: str
    rank: int
    nth: int | None = None
    op: str | None = None
    tag: str | None = None
    epoch: int | None = None
    step: int | None = None
    slot: str | None = None
    target: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        places = [
            f"{name} {value}"
            for name in ("op", "nth", "tag", "epoch", "step", "slot")
            if (value := getattr(self, name)) is not None
        ]
        if self.target is not None:
            places.append(self.target.rpartition(":")[2])
        places += [name if value is True else f"{name} {value}" for name, value in self.arguments.items()]
        return f"{self.kind} on rank {self.rank}" + (f" ({', '.join(places)})" if places else "")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The outcome without which the test fails; None accepts anything there."""

    kind: str
    guilty: tuple[int, ...] | None = None
    op: str | None = None
    tag: str | None = None
    field: str | None = None
    raises: type[BaseException] | Mapping[int, type[BaseException]] | None = None
    within: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything that decides how one item is run. Seconds throughout."""

    world_size: int
    backend: str
    timeout: float
    isolation: str
    init: bool
    lockstep: str
    patience: float
    faults: tuple[Fault, ...] = ()
    expectation: Expectation | None = None
