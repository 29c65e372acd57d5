"""Faults of a growing network. The only module here that knows esper; it imports it when a fault is armed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_esper_ddp.faults.patching import Undo, wrap
from pytest_esper_ddp.scenario import Fault


def arm(fault: Fault, fire: Callable[[], None]) -> Undo:
    """Patch esper so that `fault` happens once, in its epoch (the first possible one unless given)."""
    from esper.training import Trainer

    once = _Once(fault, fire)
    undo = [
        wrap(Trainer, "run_epoch", once.follow_epochs),
        *(wrap(owner, name, wrapper) for owner, name, wrapper in _PATCHES[fault.kind](once)),
    ]

    def undo_all() -> None:
        while undo:
            undo.pop()()

    return undo_all


class _Once:
    """Whether the moment has come; it comes once."""

    def __init__(self, fault: Fault, fire: Callable[[], None]) -> None:
        self.fault, self.fire = fault, fire
        self.epoch = 0
        self.over = False

    def follow_epochs(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run_epoch(trainer: Any, epoch: int) -> Any:
            self.epoch = epoch
            return original(trainer, epoch)

        return run_epoch

    def now(self, slot_id: str | None = None) -> bool:
        """True the first time that epoch and slot are those of the fault, which is then counted as fired."""
        fault = self.fault
        if self.over or (fault.epoch is not None and fault.epoch != self.epoch):
            return False
        if fault.slot is not None and slot_id is not None and fault.slot != slot_id:
            return False
        self.over = True
        self.fire()
        return True


_Patch = tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]


def _skip_gate(once: _Once) -> list[_Patch]:
    """One rank does not ask the gate, and would advance whatever it would have said."""
    from esper.training import Growth

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def pass_gate(growth: Any, slot_id: str, signals: Any, birth: Any = None) -> Any:
            return None if birth is None and once.now(slot_id) else original(growth, slot_id, signals, birth)

        return pass_gate

    return [(Growth, "pass_gate", wrapper)]


def _skip_agreement(once: _Once) -> list[_Patch]:
    """One rank leaves the epoch's exchange out and goes on with its own numbers as if all had agreed."""
    from esper.distributed.agreement import Agreement

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def exchange(agreement: Any, record: Any) -> Any:
            if record.epoch and once.now():
                return Agreement(None).exchange(record)
            return original(agreement, record)

        return exchange

    return [(Agreement, "exchange", wrapper)]


def _germinate_alone(once: _Once) -> list[_Patch]:
    """One rank germinates by itself: before the agreement, or, `decided`, by a decision of its own."""
    from esper.control.actions import Decision, Germinate
    from esper.training import Trainer

    fault = once.fault
    blueprint = fault.arguments.get("blueprint", "norm")

    def slot_of(trainer: Any) -> Any:
        return trainer.model.slots[fault.slot or trainer.model.slot_ids[0]]

    def agree_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def agree(trainer: Any, epoch: int, *args: Any) -> Any:
            if epoch and once.now():
                import torch

                slot = slot_of(trainer)
                slot.commit(blueprint, slot.prepare(blueprint, torch.Generator().manual_seed(0)))
            return original(trainer, epoch, *args)

        return agree

    def decide_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def decide(trainer: Any, agreed: Any) -> Any:
            decision = original(trainer, agreed)
            if once.now():
                return Decision((Germinate(slot_of(trainer).slot_id, blueprint),))
            return decision

        return decide

    if fault.arguments.get("decided"):
        return [(Trainer, "decide", decide_wrapper)]
    return [(Trainer, "agree", agree_wrapper)]


_PATCHES: dict[str, Callable[[_Once], list[_Patch]]] = {
    "skip_gate": _skip_gate,
    "skip_agreement": _skip_agreement,
    "germinate_alone": _germinate_alone,
}
