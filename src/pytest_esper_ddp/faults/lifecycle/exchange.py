"""One rank says, asks or decides something else than the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pytest_esper_ddp.faults.lifecycle.once import Function, Once, Patch, before


def _skip_gate(once: Once) -> list[Patch]:
    """Does not ask the gate, and would advance whatever it would have said."""
    from esper.training import Growth

    def wrapper(original: Function) -> Function:
        def pass_gate(growth: Any, slot_id: str, signals: Any, birth: Any = None) -> Any:
            return None if birth is None and once.now(slot_id) else original(growth, slot_id, signals, birth)

        return pass_gate

    return [(Growth, "pass_gate", wrapper)]


def _skip_agreement(once: Once) -> list[Patch]:
    """Leaves the epoch's exchange out and goes on with its own numbers as if all had agreed."""
    from esper.distributed.agreement import Agreement

    def wrapper(original: Function) -> Function:
        def exchange(agreement: Any, record: Any, *explain: Any) -> Any:
            if once.now():
                return Agreement(None).exchange(record)
            return original(agreement, record, *explain)

        return exchange

    return [(Agreement, "exchange", wrapper)]


def _slot_order(once: Once) -> list[Patch]:
    """Goes through its slots from the last to the first."""
    from esper.training import Trainer

    def turn(trainer: Any, *_: Any) -> None:
        if once.now():
            trainer.model.slot_ids = trainer.model.slot_ids[::-1]

    return [(Trainer, "agree", before(turn))]


def _other_thresholds(once: Once) -> list[Patch]:
    """Goes on with other thresholds of the gates."""
    from esper.training import Trainer

    def change(trainer: Any, *_: Any) -> None:
        if once.now():
            gates = replace(
                trainer.config.gates, min_contribution=trainer.config.gates.min_contribution + 1.0
            )
            trainer.config = trainer.growth._config = replace(trainer.config, gates=gates)

    return [(Trainer, "agree", before(change))]


def _rng_shift(once: Once) -> list[Patch]:
    """Draws the weights of seeds from other numbers."""
    from esper.distributed import growth

    def wrapper(original: Function) -> Function:
        def birth_seed(*which: Any) -> Any:
            once.now()
            return original(*which) + once.over

        return birth_seed

    return [(growth, "birth_seed", wrapper)]


def _panic_alone(once: Once) -> list[Patch]:
    """Its governor panics."""
    from esper.training.safeguard import Safeguard

    def wrapper(original: Function) -> Function:
        def panics(*given: Any) -> Any:
            return original(*given) or once.now()

        return panics

    return [(Safeguard, "panics", wrapper)]


def _compile_fallback(once: Once) -> list[Patch]:
    """Cannot compile its steps."""
    from esper.training import Trainer

    def fall_back(trainer: Any, *_: Any) -> None:
        if once.now():
            trainer.compiler.fall_back(RuntimeError("injected"))

    return [(Trainer, "train_epoch", before(fall_back))]


def _local_verdict(once: Once) -> list[Patch]:
    """Has measured nothing, so that by its own numbers gates would not pass."""
    from esper.lifecycle.metrics import SlotMeasurement
    from esper.training import Trainer

    def wrapper(original: Function) -> Function:
        def evaluate(trainer: Any) -> Any:
            whole, measured = original(trainer)
            return whole, tuple(SlotMeasurement() for _ in measured) if once.now() else measured

        return evaluate

    return [(Trainer, "evaluate", wrapper)]


def _other_blueprint(once: Once) -> list[Patch]:
    """Decides for another blueprint, `blueprint`, where all germinate."""
    from esper.control.actions import Decision, Germinate
    from esper.training import Trainer

    def wrapper(original: Function) -> Function:
        def decide(trainer: Any, agreed: Any) -> Any:
            decision = original(trainer, agreed)
            actions = list(decision.actions)
            for index, action in enumerate(actions):
                if isinstance(action, Germinate) and once.now(action.slot_id):
                    actions[index] = replace(
                        action, blueprint=once.fault.arguments.get("blueprint", "attention")
                    )
            return Decision(tuple(actions))

        return decide

    return [(Trainer, "decide", wrapper)]


KINDS: dict[str, Callable[[Once], list[Patch]]] = {
    "skip_gate": _skip_gate,
    "skip_agreement": _skip_agreement,
    "slot_order": _slot_order,
    "other_thresholds": _other_thresholds,
    "rng_shift": _rng_shift,
    "panic_alone": _panic_alone,
    "compile_fallback": _compile_fallback,
    "local_verdict": _local_verdict,
    "other_blueprint": _other_blueprint,
}
