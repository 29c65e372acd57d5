"""Applies a test's faults on this rank, from outside the code under test, and counts them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from esper.lockstep.entry import Kind
from esper.lockstep.intercept import Call, Interception
from esper.lockstep.recorder import Recorder
from pytest_esper_ddp.faults import collective, process
from pytest_esper_ddp.faults.catalogue import CATALOGUE
from pytest_esper_ddp.scenario import Fault

_AT_CALLS = {"process": process.apply, "collective": collective.apply}


@dataclass
class _Armed:
    """A fault that waits for its n-th matching collective."""

    index: int
    fault: Fault
    apply: Callable[[Fault], bool]
    seen: int = 0

    def due(self, call: Call) -> bool:
        """Count `call` if it matches; whether it is the one."""
        fault = self.fault
        if (fault.op is not None and fault.op != call.op) or (
            fault.tag is not None and fault.tag != call.tag
        ):
            return False
        self.seen += 1
        return self.seen == (fault.nth or 1)


class Injector:
    """Active while its item runs; the interposer of this rank's collectives."""

    def __init__(
        self, faults: tuple[Fault, ...], rank: int, recorder: Recorder, interception: Interception | None
    ) -> None:
        self._mine = [(index, fault) for index, fault in enumerate(faults) if fault.rank == rank]
        self._recorder, self._interception = recorder, interception
        self._armed: list[_Armed] = []
        self._undo: list[Callable[[], None]] = []
        self._fired: list[tuple[int, float]] = []

    def __enter__(self) -> Injector:
        for index, fault in self._mine:
            family = CATALOGUE[fault.kind].family
            if family in _AT_CALLS:
                self._armed.append(_Armed(index, fault, _AT_CALLS[family]))
            else:
                module = importlib.import_module(f"pytest_esper_ddp.faults.{family}")
                self._undo.append(module.arm(fault, partial(self._fire, index)))
        if self._armed and self._interception is not None:
            self._interception.interposer = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._interception is not None:
            self._interception.interposer = None
        while self._undo:
            self._undo.pop()()

    def before(self, call: Call) -> bool:
        """Apply the faults that are due at this collective; whether it is left out."""
        left_out = False
        for armed in self._armed:
            if armed.due(call):
                self._fire(armed.index)
                left_out |= armed.apply(armed.fault)
        return left_out

    def fired(self) -> tuple[tuple[int, float], ...]:
        """Which faults have fired on this rank, and when."""
        return tuple(self._fired)

    def _fire(self, index: int) -> None:
        # Into the ledger first: the fault may be the last thing that this process does.
        self._recorder.event(Kind.FAULT, index=index)
        self._fired.append((index, time.monotonic()))
