"""When a fault of the lifecycle is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_esper_ddp.scenario import Fault

Function = Callable[..., Any]
# What is patched: its owner, its name there, and what is put around it.
Patch = tuple[Any, str, Callable[[Function], Function]]


class Once:
    """Whether the moment has come; it comes once."""

    def __init__(self, fault: Fault, fire: Callable[[], None]) -> None:
        self.fault, self.fire = fault, fire
        self.epoch = 0  # that the trainer is in
        self.over = False

    def follow_epochs(self, original: Function) -> Function:
        """Around `Trainer.run_epoch`."""

        def run_epoch(trainer: Any, epoch: int) -> Any:
            self.epoch = epoch
            return original(trainer, epoch)

        return run_epoch

    def now(self, slot_id: str | None = None) -> bool:
        """True the first time that epoch and slot are those of the fault, which is then counted as fired."""
        fault = self.fault
        if self.over or self.epoch == 0 or (fault.epoch is not None and fault.epoch != self.epoch):
            return False
        if fault.slot is not None and slot_id is not None and fault.slot != slot_id:
            return False
        self.over = True
        self.fire()
        return True

    def slot(self, trainer: Any, fits: Callable[[Any], bool]) -> Any:
        """The fault's slot, or without one the first, if its record `fits`; None when there is none."""
        for slot_id in trainer.model.slot_ids:
            slot = trainer.model.slots[slot_id]
            if self.fault.slot in (None, slot_id) and fits(slot.record()):
                return slot
        return None


def before(act: Callable[..., None]) -> Callable[[Function], Function]:
    """Puts `act`, with the arguments of the call, in front of a function."""

    def wrapper(original: Function) -> Function:
        def called(*args: Any, **keywords: Any) -> Any:
            act(*args, **keywords)
            return original(*args, **keywords)

        return called

    return wrapper


def after(act: Callable[..., None]) -> Callable[[Function], Function]:
    """Puts `act`, with the arguments of the call, behind a function."""

    def wrapper(original: Function) -> Function:
        def called(*args: Any, **keywords: Any) -> Any:
            result = original(*args, **keywords)
            act(*args, **keywords)
            return result

        return called

    return wrapper
