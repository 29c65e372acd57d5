"""Faults of one collective call: left out, repeated, exchanged, or issued with something else."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from esper.lockstep import tags
from esper.lockstep.rank.interposer import Call, Proceed
from pytest_esper_ddp.faults.addressed import Act, Address, AtCollectives, Fire, Once
from pytest_esper_ddp.faults.changes import CHANGES, first_tensor, flip
from pytest_esper_ddp.scenario import Fault


def at_collectives(fault: Fault, fire: Fire) -> AtCollectives:
    """What does it when its collective comes."""
    return Swap(fault, fire) if fault.kind == "swap" else Once(fault, fire, KINDS[fault.kind])


class Swap:
    """Holds a collective back until the next of the same coordinates but the tag was issued.

    Callers that wait get both done at the second; the first gets its tensors back as they were meanwhile.
    """

    def __init__(self, fault: Fault, fire: Fire) -> None:
        self._op, self._nth, self._fire = fault.op, fault.nth or 1, fire
        self._address = Address(fault)
        self._held: tuple[Call, Proceed] | None = None
        self._over = False

    def meets(self, call: Call) -> bool:
        """Whether `call` is one of the two."""
        if self._over:
            return False
        if self._held is not None:
            return self._op is None or self._op == call.op
        return self._address.count(call) == self._nth

    def around(self, call: Call, proceed: Proceed) -> Any:
        """Keep the first; issue the second, then the first."""
        if self._held is None:
            self._held = (call, proceed)
            return call.left_out()
        first, issue = self._held
        self._held, self._over = None, True
        self._fire()
        out = proceed(*call.args)
        if call.waits:
            call.wait(out)
        outer, tags.current.tag = tags.current.tag, first.tag
        try:
            late = issue(*first.args)
        finally:
            tags.current.tag = outer
        if first.waits:
            first.wait(late)
        return out


def _skip(fault: Fault, call: Call, proceed: Proceed) -> Any:
    return call.left_out()


def _duplicate(fault: Fault, call: Call, proceed: Proceed) -> Any:
    out = proceed(*call.args)
    if call.waits:
        call.wait(out)
    return proceed(*call.args)


def _corrupt(fault: Fault, call: Call, proceed: Proceed) -> Any:
    if fault.arguments.get("where", "result") == "input":
        flip(first_tensor(call.tensors))
        return proceed(*call.args)
    out = proceed(*call.args)
    # Of every operator the first argument is what it writes to.
    call.then(out, partial(flip, first_tensor(call.args[0])))
    return out


def _delay(fault: Fault, call: Call, proceed: Proceed) -> Any:
    """Issued in time, but its result is late."""
    out = proceed(*call.args)
    call.then(out, partial(time.sleep, fault.arguments["seconds"]))
    return out


def _changed(fault: Fault, call: Call, proceed: Proceed) -> Any:
    return proceed(*CHANGES[fault.kind](call))


KINDS: dict[str, Act] = {
    "skip": _skip,
    "duplicate": _duplicate,
    "corrupt": _corrupt,
    "delay": _delay,
    **dict.fromkeys(CHANGES, _changed),
}
