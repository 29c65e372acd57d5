"""What the processes say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_esper_ddp.scenario import Fault

# controller -> zygote


@dataclass(frozen=True)
class Preload:
    """Import this module now, while pytest still collects."""

    module: str


@dataclass(frozen=True)
class Collect:
    """Collect these files once more, with the options of the session."""

    options: Mapping[str, Any]
    files: tuple[str, ...]
    directory: str


@dataclass(frozen=True)
class Measured:
    """How coverage is measured in pytest's process, and where ranks leave theirs."""

    settings: object  # coverage's own
    data: Path  # what names of files begin with
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Debugger:
    """When a rank is to be debugged."""

    post_mortem: bool = False  # where it fails
    trace: bool = False  # from its test's first line
    rank: int | None = None  # this one alone


@dataclass(frozen=True)
class ForkWorld:
    """Fork the ranks of a world; their ends of the socket pairs travel beside this message."""

    number: int  # no other world of the session has it
    world_size: int
    run_dir: Path
    base_temp: Path
    backend: str
    init: bool
    lockstep: bool
    seed: int
    lasting: bool  # its ranks run one test after the other
    store_port: int  # of the session's store, on the loopback interface
    measured: Measured | None = None
    debugger: Debugger = Debugger()

    @property
    def shared_path(self) -> Path:
        """The directory that a test's ranks have in common, where one of them has asked for it."""
        return self.run_dir / "shared"


# zygote -> controller; Broken also rank -> controller


@dataclass(frozen=True)
class Collected:
    """The items that the zygote found: digest of the parameters by node id."""

    items: Mapping[str, str]
    unforkable: str = ""  # what the process has that a fork would lack, in words
    started: Mapping[str, str] = field(default_factory=dict)  # of that by file: what importing it has started
    errors: str = ""


@dataclass(frozen=True)
class Forked:
    """The process ids of a new world, by rank."""

    pids: tuple[int, ...]


@dataclass(frozen=True)
class Exited:
    """The zygote reaped a rank; `code` as waitpid has it (negative: the signal)."""

    pid: int
    code: int


@dataclass(frozen=True)
class Broken:
    """The zygote can't go on, or a rank can't start."""

    reason: str


# launched rank -> controller


@dataclass(frozen=True)
class Joined:
    """A launched rank is ready to be one of a world; `items` as in Collected."""

    rank: int
    pid: int
    items: Mapping[str, str]


# controller -> rank


@dataclass(frozen=True)
class Leave:
    """To a launched rank: end with this status or, without one, begin anew."""

    status: int | None


@dataclass(frozen=True)
class BecomeRank:
    """Be this rank of a world, in the process that has collected the tests."""

    rank: int
    world: ForkWorld


@dataclass(frozen=True)
class RunTest:
    """Run one item; `name` is what its records in the ledger begin with. `judged`: a verdict ends it."""

    nodeid: str
    next_nodeid: str | None
    name: str
    faults: tuple[Fault, ...]
    judged: bool


@dataclass(frozen=True)
class Terminal:
    """Answers a rank that has asked for it. Where granted, standard input travels behind this message."""

    granted: bool


@dataclass(frozen=True)
class EndWorld:
    """No more tests: finalise fixtures and leave."""


# rank -> controller


@dataclass(frozen=True)
class AsksForTerminal:
    """A debugger wants to prompt; the rank waits for a `Terminal`."""

    post_mortem: bool


@dataclass(frozen=True)
class LeavesTerminal:
    """The debugger is done."""


@dataclass(frozen=True)
class Up:
    """The group stands (or, without init, the process does).

    Behind it come `captured` files, which hold what the rank has printed since its last report.
    """

    captured: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a rank failed first: phase, time (CLOCK_MONOTONIC seconds), the exception and its chain as text.

    `kind`, `guilty` and `fields` are those of a `DivergenceError` in the chain, if there is one.
    """

    phase: str
    at: float
    type: str
    text: str
    victim: bool
    bases: tuple[str, ...] = ()
    kind: str | None = None
    guilty: tuple[int, ...] = ()
    fields: tuple[str, ...] = ()
    divergence: str | None = None


@dataclass(frozen=True)
class Warned:
    """A warning that a rank has recorded, as text: its class may not exist where the message is read."""

    text: str
    module: str
    category: str
    file: str
    line: int


@dataclass(frozen=True)
class Early:
    """A report of a failure, or with output, which would be lost if the rank died before its outcome;
    `failure`: the rank's first, if there is one by now.
    """

    report: Mapping[str, Any]
    failure: Failure | None


Times = tuple[tuple[float, float, float], ...]  # by phase: start and stop in epoch seconds, duration


@dataclass(frozen=True)
class Outcome:
    """One rank's end of one item. `error`: it could not be run to its end, and its reports are not all; with
    `stops` because the session is to end. `refused`: it was not begun, since its faults can't be injected.
    `passed` stands for reports that say nothing else.
    """

    reports: tuple[Mapping[str, Any], ...]
    failure: Failure | None
    groups: Mapping[str, tuple[int, int, tuple[int, ...]]]
    fired: tuple[tuple[int, float], ...]  # index of the fault, and when
    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    stops: bool = False
    refused: str | None = None
    warnings: tuple[Warned, ...] = ()
    shown: str = ""  # what --setup-show prints
    passed: Times | None = None


@dataclass(frozen=True)
class Finalised:
    """A rank has finalised its fixtures: why it could not, and the report on that."""

    failure: Failure | None = None
    report: Mapping[str, Any] | None = None
