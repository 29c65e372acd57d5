"""Applies a test's faults on this rank, from outside the code under test, and counts them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.interposer import Call, Proceed
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Kind
from pytest_esper_ddp.faults import call as call_family
from pytest_esper_ddp.faults import collective, patching, process
from pytest_esper_ddp.faults.addressed import AtCollectives
from pytest_esper_ddp.faults.catalogue import CATALOGUE
from pytest_esper_ddp.scenario import Fault

_AT_COLLECTIVES = {"process": process.at_collectives, "collective": collective.at_collectives}


def refusal(faults: tuple[Fault, ...]) -> str | None:
    """Why the faults can't be injected, in one sentence: all ranks say it before any runs the test."""
    try:
        for fault in faults:
            if CATALOGUE[fault.kind].family == "call":
                call_family.check(fault)
            elif fault.target is not None:
                patching.resolve(fault.target)
    except LookupError as error:
        return f"ddp_fault({fault.kind!r}): {error.args[0]}"
    return None


class Injector:
    """Active while its item runs; the interposer of this rank's collectives."""

    def __init__(
        self, faults: tuple[Fault, ...], rank: int, recorder: Recorder, interception: Interception | None
    ) -> None:
        self._mine = [(index, fault) for index, fault in enumerate(faults) if fault.rank == rank]
        self._recorder, self._interception = recorder, interception
        self._armed: list[AtCollectives] = []
        self._undo: list[Callable[[], None]] = []
        self._fired: list[tuple[int, float]] = []

    def __enter__(self) -> Injector:
        for index, fault in self._mine:
            family, fire = CATALOGUE[fault.kind].family, partial(self._fire, index)
            if family in _AT_COLLECTIVES:
                self._armed.append(_AT_COLLECTIVES[family](fault, fire))
            else:
                module = importlib.import_module(f"pytest_esper_ddp.faults.{family}")
                self._undo.append(module.arm(fault, fire))
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

    def around(self, call: Call, proceed: Proceed) -> Any:
        """Apply the faults that are due at this collective, the first of them outermost."""
        for armed in reversed([armed for armed in self._armed if armed.meets(call)]):
            proceed = partial(_around, armed, call, proceed)
        return proceed(*call.args)

    def fired(self) -> tuple[tuple[int, float], ...]:
        """Which faults have fired on this rank, and when."""
        return tuple(self._fired)

    def _fire(self, index: int) -> None:
        # Into the ledger first: the fault may be the last thing that this process does.
        self._recorder.event(Kind.FAULT, index=index)
        self._fired.append((index, time.monotonic()))


def _around(armed: AtCollectives, call: Call, proceed: Proceed, *args: Any) -> Any:
    """What a fault further out has changed is what this one sees."""
    return armed.around(replace(call, args=args), proceed)
