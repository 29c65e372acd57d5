"""One rank does something to its model, or leaves something out, that the others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_esper_ddp.faults.lifecycle.once import Function, Once, Patch, after, before


def _tick(times: int) -> Callable[[Once], list[Patch]]:
    def patches(once: Once) -> list[Patch]:
        from esper.training import Trainer

        def wrapper(original: Function) -> Function:
            def tick(trainer: Any) -> None:
                for _ in range(times if once.now() else 1):
                    original(trainer)

            return tick

        return [(Trainer, "tick", wrapper)]

    return patches


def _alone(act: Callable[[Any, Any, Once], None], fits: Callable[[Any], bool], action: Any) -> Any:
    """Acts before the agreement; `after`: behind it; `decided`: by a decision of its own.

    `act(trainer, slot, once)`, at a slot whose record fits; `action(slot_id, once)` is what it would decide.
    """

    def patches(once: Once) -> list[Patch]:
        from esper.control.actions import Decision
        from esper.training import Trainer

        def do(trainer: Any, *_: Any) -> None:
            slot = once.slot(trainer, fits)
            if slot is not None and once.now(slot.slot_id):
                act(trainer, slot, once)

        def wrapper(original: Function) -> Function:
            def decide(trainer: Any, agreed: Any) -> Any:
                decision = original(trainer, agreed)
                slot = once.slot(trainer, fits)
                if slot is not None and once.now(slot.slot_id):
                    return Decision((action(slot.slot_id, once),))
                return decision

            return decide

        if once.fault.arguments.get("decided"):
            return [(Trainer, "decide", wrapper)]
        if once.fault.arguments.get("after"):
            return [(Trainer, "tick", after(do))]
        return [(Trainer, "agree", before(do))]

    return patches


def _vacant(record: Any) -> bool:
    return bool(record.stage.name == "DORMANT")


def _prunable(record: Any) -> bool:
    return record.blueprint is not None and record.stage.name != "FOSSILIZED"


def _blueprint(once: Once) -> str:
    return str(once.fault.arguments.get("blueprint", "norm"))


def _germinate(trainer: Any, slot: Any, once: Once) -> None:
    import torch

    slot.commit(_blueprint(once), slot.prepare(_blueprint(once), torch.Generator().manual_seed(0)))


def _to_germinate(slot_id: str, once: Once) -> Any:
    from esper.control.actions import Germinate

    return Germinate(slot_id, _blueprint(once))


def _prune(trainer: Any, slot: Any, once: Once) -> None:
    slot.prune(0)


def _to_prune(slot_id: str, once: Once) -> Any:
    from esper.control.actions import Prune

    return Prune(slot_id)


def _override_alone(once: Once) -> list[Patch]:
    """Keeps an alpha that was meant for one question."""
    from esper.training import Trainer

    def keep(trainer: Any, *_: Any) -> None:
        slot = once.slot(trainer, lambda record: True)
        if once.now(slot.slot_id):
            alpha = trainer.model.alphas[trainer.model.slot_ids.index(slot.slot_id)]
            alpha.fill_(0.25 if alpha.item() != 0.25 else 0.75)

    return [(Trainer, "evaluate", after(keep))]


def _restore_alone(once: Once) -> list[Patch]:
    """Goes back to where it was before the epoch."""
    from esper.training import Trainer
    from esper.training.snapshot import capture, restore

    held: list[Any] = []

    def hold(trainer: Any, *_: Any) -> None:
        held[:] = [capture(trainer.model, trainer.optimizer)]

    def go_back(trainer: Any, *_: Any) -> None:
        if once.now():
            restore(trainer.model, trainer.optimizer, held[0])

    return [(Trainer, "train_epoch", before(hold)), (Trainer, "agree", before(go_back))]


def _optimizer_misses_seed(once: Once) -> list[Patch]:
    """Does not step the seeds of one epoch."""
    from esper.training import trainer as loop

    def forget(optimizer: Any, parameters: Any) -> None:
        group = optimizer.param_groups[0]
        learning = [each for each in group["params"] if each.requires_grad]
        hosts = [each for each in learning if each in seen]
        if seen and len(hosts) < len(learning) and once.now():
            group["params"] = hosts
        elif not seen:
            seen.update(learning)

    # The parameters of the first epoch are the host's: a seed comes later.
    seen: set[Any] = set()
    return [(loop, "follow_parameters", after(forget))]


def _wrapper_not_rebuilt(once: Once) -> list[Patch]:
    """Trains with the wrapper of the epoch before, which does not know the parameters that learn now."""
    from esper.training import Trainer

    held: list[Any] = []

    def wrapper(original: Function) -> Function:
        def wrap(trainer: Any) -> Any:
            learning = [id(each) for each in trainer.model.parameters() if each.requires_grad]
            if held and held[1] != learning and once.now():
                return held[0]
            held[:] = [original(trainer), learning]
            return held[0]

        return wrap

    return [(Trainer, "wrap", wrapper)]


KINDS: dict[str, Callable[[Once], list[Patch]]] = {
    "extra_tick": _tick(2),
    "missed_tick": _tick(0),
    "germinate_alone": _alone(_germinate, _vacant, _to_germinate),
    "prune_alone": _alone(_prune, _prunable, _to_prune),
    "override_alone": _override_alone,
    "restore_alone": _restore_alone,
    "optimizer_misses_seed": _optimizer_misses_seed,
    "wrapper_not_rebuilt": _wrapper_not_rebuilt,
}
