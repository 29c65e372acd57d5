"""Which of a rank's collectives a fault is addressed to, and what stands around that one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from esper.lockstep.rank.interposer import Call, Proceed
from pytest_esper_ddp.faults.catalogue import CATALOGUE
from pytest_esper_ddp.scenario import Fault

Fire = Callable[[], None]
# What is done at the addressed collective: it gets the call and what issues it, and returns what the caller
# gets.
Act = Callable[[Fault, Call, Proceed], Any]


class AtCollectives(Protocol):
    """A fault that waits for its collective."""

    def meets(self, call: Call) -> bool:
        """Whether it has to do with `call`. Asked once for each collective of the rank, since it counts."""
        ...

    def around(self, call: Call, proceed: Proceed) -> Any:
        """Issue a call that it has met, or not; returns what the caller gets."""
        ...


class Address:
    """Counts the collectives that a fault's coordinates fit, and to which its kind can be done at all."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._ops = fault, CATALOGUE[fault.kind].ops
        self.seen = 0

    def count(self, call: Call) -> int:
        """Which of the fitting ones `call` is, from 1; 0 when it is none."""
        fault = self._fault
        if call.op not in ((fault.op,) if fault.op is not None else self._ops):
            return 0
        if fault.tag is not None and fault.tag != call.tag:
            return 0
        self.seen += 1
        return self.seen


class Once:
    """Acts on the n-th fitting collective; `onwards`: on those after it, too."""

    def __init__(self, fault: Fault, fire: Fire, act: Act, *, onwards: bool = False) -> None:
        self._fault, self._fire, self._act, self._onwards = fault, fire, act, onwards
        self._address = Address(fault)
        self._fired = False

    def meets(self, call: Call) -> bool:
        """Count `call`; whether it is the one."""
        number, nth = self._address.count(call), self._fault.nth or 1
        return number == nth or (self._onwards and number > nth)

    def around(self, call: Call, proceed: Proceed) -> Any:
        """Act, and say once that it has fired."""
        if not self._fired:
            self._fired = True
            self._fire()
        return self._act(self._fault, call, proceed)
