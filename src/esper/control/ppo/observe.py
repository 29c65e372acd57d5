"""An epoch's signals as the numbers that the policy reads. Every rank makes the same of the same signals."""

from __future__ import annotations

import math
from itertools import chain

from esper.control.ppo.space import ActionSpace
from esper.control.signals import EpochSignals, SlotView, gate_for
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.gates import GateConfig
from esper.lifecycle.stage import Stage, has_seed

# What a plain number is divided by, to be of the order of 1.
_POINTS, _EPOCHS = 10.0, 10.0
_OF_RUN = 7
_OF_SLOT = 16
_MOST = 10.0  # beyond it a number says no more than that it is large


def observation_size(space: ActionSpace) -> int:
    """How many numbers `observe` gives."""
    return _OF_RUN + len(space.slots) * (_OF_SLOT + len(Stage) + len(space.blueprints))


def observe(
    signals: EpochSignals, space: ActionSpace, gates: GateConfig, *, epochs: int
) -> tuple[float, ...]:
    """The run's numbers, then each slot's in forward order; `epochs`: how long the run is. What was never
    measured is 0, and a number beside it says so.
    """
    slots = chain.from_iterable(_of_slot(view, space, gates) for view in signals.slots)
    return tuple(_bounded(number) for number in (*_of_run(signals, epochs), *slots))


def _bounded(number: float) -> float:
    return min(_MOST, max(-_MOST, number)) if not math.isnan(number) else 0.0


def _of_run(signals: EpochSignals, epochs: int) -> tuple[float, ...]:
    losses, accuracies = signals.losses, signals.accuracies
    fall = losses[-1] / losses[-2] - 1.0 if len(losses) > 1 and losses[-2] > 0.0 else 0.0
    gains = [
        (accuracies[-1] - accuracies[-1 - back]) / _POINTS if len(accuracies) > back else 0.0
        for back in (1, 3)
    ]
    return (
        signals.epoch / epochs,
        math.log(losses[-1]) if losses[-1] > 0.0 else -_MOST,
        fall,
        accuracies[-1] / 100.0,
        *gains,
        (signals.best_accuracy - accuracies[-1]) / _POINTS,
    )


def _of_slot(view: SlotView, space: ActionSpace, gates: GateConfig) -> tuple[float, ...]:
    record, measured = view.record, view.measurement
    passes = has_seed(record.stage) and record.stage is not Stage.FOSSILIZED and gate_for(view, gates).passed
    return (
        record.alpha,
        record.alpha_target,
        float(record.alpha_mode == AlphaMode.UP),
        float(record.alpha_mode == AlphaMode.DOWN),
        record.ticks_left / _EPOCHS,
        record.epochs_in_stage / _EPOCHS,
        *_or_zero(view.improvement, _POINTS),
        *_or_zero(measured.gradient_ratio, 1.0),
        *_or_zero(measured.gradient_health, 1.0),
        *_or_zero(measured.contribution, _POINTS),
        float(measured.exploding),
        float(passes),
        *(float(record.stage is stage) for stage in Stage),
        *(float(record.blueprint == name) for name in space.blueprints),
    )


def _or_zero(value: float | None, scale: float) -> tuple[float, float]:
    return (0.0, 0.0) if value is None else (value / scale, 1.0)
