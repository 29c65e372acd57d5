"""What a run of one test on ranks came to: data that the world gathers, and reports are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.lockstep.report.diagnosis import Diagnosis
from pytest_esper_ddp.wire.messages import Finalised, Outcome


@dataclass
class Run:
    """All that is known of one test's run; seconds, CLOCK_MONOTONIC where it is a time."""

    started: float
    ended: float = 0.0
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    exits: dict[int, int] = field(default_factory=dict)
    unfinished: dict[int, str] = field(default_factory=dict)  # rank: where it was
    why_ended: str | None = None  # timeout, grace, verdict; None: every rank reported or died
    diagnosis: Diagnosis | None = None
    decided_at: float = 0.0
    fired: dict[int, float] = field(default_factory=dict)  # index of the fault: when
    broken: str | None = None  # traceback of lockstep's own failure
    uneven: bool = False  # the ranks' groups are not at the same collective
    # What ranks without an outcome have printed since their last report: name of the section, and text.
    printed: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    shortened: str = ""  # why the time-out is not that of the plan
    ends: Mapping[int, Finalised] = field(default_factory=dict)  # of ranks that ended after this test

    @property
    def spoiled(self) -> bool:
        """Whether the world had better not be used again."""
        return self.unusable or any(outcome.failure for outcome in self.outcomes.values())

    @property
    def unusable(self) -> bool:
        """Whether the world can't be used again."""
        left = any(outcome.leaks or outcome.error for outcome in self.outcomes.values())
        return bool(self.exits or self.unfinished or self.diagnosis or self.uneven or left)


def uneven(outcomes: Mapping[int, Outcome]) -> bool:
    """Whether two members of a group differ in how many collectives they entered, or in which."""
    groups = {group: members for one in outcomes.values() for group, (_, _, members) in one.groups.items()}
    for group, members in groups.items():
        places = {outcomes[rank].groups.get(group, (0, 0, ()))[:2] for rank in members if rank in outcomes}
        if len(places) > 1:
            return True
    return False
