"""Faults of a growing network. Only this package knows esper, and imports it when a fault is armed."""

from __future__ import annotations

from collections.abc import Callable

from pytest_esper_ddp.faults.lifecycle import exchange, model
from pytest_esper_ddp.faults.lifecycle.once import Once, Patch
from pytest_esper_ddp.faults.patching import Undo, wrap
from pytest_esper_ddp.scenario import Fault

KINDS: dict[str, Callable[[Once], list[Patch]]] = {**exchange.KINDS, **model.KINDS}


def arm(fault: Fault, fire: Callable[[], None]) -> Undo:
    """Patch esper so that `fault` happens once, in its epoch (the first possible one unless given)."""
    from esper.training import Trainer

    once = Once(fault, fire)
    undo = [
        wrap(Trainer, "run_epoch", once.follow_epochs),
        *(wrap(owner, name, wrapper) for owner, name, wrapper in KINDS[fault.kind](once)),
    ]

    def undo_all() -> None:
        while undo:
            undo.pop()()

    return undo_all
