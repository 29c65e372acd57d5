"""Errors of lockstep, and the base of errors by which a program names a divergence itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.lockstep.report.diagnosis import Diagnosis


@dataclass(frozen=True)
class FieldDifference:
    """One field on which ranks disagree; `values` holds (rank, value as text) for every rank."""

    field: str
    values: tuple[tuple[int, str], ...]


class DivergenceError(RuntimeError):
    """A program's own, named end of a run whose ranks no longer agree.

    `kind` is what it found (`lifecycle`, `deadline`, ...), `guilty` the global ranks it names, `fields` the
    values that differ. A test harness reads these three and needs to know nothing else about the program.
    """

    def __init__(
        self, message: str, *, kind: str, guilty: Sequence[int], fields: Sequence[FieldDifference] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.guilty = tuple(guilty)
        self.fields = tuple(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.message, self.kind, self.guilty, self.fields)


def _restore(
    cls: type[DivergenceError],
    message: str,
    kind: str,
    guilty: tuple[int, ...],
    fields: tuple[FieldDifference, ...],
) -> DivergenceError:
    # Subclasses fix `kind` in their own __init__; the state is restored past it so that each class
    # round-trips.
    error = cls.__new__(cls)
    DivergenceError.__init__(error, message, kind=kind, guilty=guilty, fields=fields)
    return error


class LockstepError(DivergenceError):
    """Raised on every rank by the watchdog (`esper.lockstep.start`) in what is stuck: `diagnosis` is what it
    found.
    """

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.message, kind="watchdog", guilty=diagnosis.guilty)
        self.diagnosis = diagnosis

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.diagnosis,)


class LedgerError(RuntimeError):
    """A ledger that can't be made, or a file that is none: `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"ledger {path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class InterceptionUnavailable(RuntimeError):
    """This build of torch lacks what the interception needs: `hook` says what, `version` which build."""

    def __init__(self, hook: str, version: str) -> None:
        super().__init__(f"torch {version} has no {hook}: lockstep can't see its collectives (2.13 has it)")
        self.hook = hook
        self.version = version

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.hook, self.version)


class KernelNotBuilt(RuntimeError):
    """The compiled kernel could not be built; `reason` says what is missing."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the compiled kernel is not built: {reason}; the one in Python sees the same and costs more"
        )
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,)


class StartError(RuntimeError):
    """A run that can't begin, through no fault of its script: `what` could not be had, `reason` says why."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.what = what
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.reason)
