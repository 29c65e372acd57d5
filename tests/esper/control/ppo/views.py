"""Epochs as a controller sees them, made up."""

from __future__ import annotations

from typing import Any

from esper.control import EpochSignals
from esper.lifecycle import AlphaMode, SlotMeasurement, SlotRecord, Stage
from esper.lifecycle.config import Blend
from tests.esper.control.ppo.worlds import SPACE

_SEEDLESS = (Stage.DORMANT, Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING)


def slot(stage: Stage, place: int = 0, /, **changes: Any) -> SlotRecord:
    fields: dict[str, Any] = {
        "slot_id": SPACE.slots[place], "stage": stage, "blueprint": None if stage in _SEEDLESS else "norm",
        "blend": None if stage in _SEEDLESS else Blend.ADD,
        "birth": 1, "epochs_in_stage": 20, "alpha": 1.0, "alpha_target": 1.0,
        "alpha_mode": AlphaMode.HOLD, "ticks_left": 0,
    }  # fmt: skip
    return SlotRecord(**{**fields, **changes})


HEALTHY = SlotMeasurement(gradient_ratio=1.0, gradient_health=1.0, contribution=5.0)


RISING = tuple(2.0 * epoch for epoch in range(30))


def epoch(
    *records: SlotRecord,
    measured: SlotMeasurement = HEALTHY,
    accuracies: tuple[float, ...] = RISING,
    losses: tuple[float, ...] = (2.0, 1.0),
    bits: int = 0,
    number: int | None = None,
) -> EpochSignals:
    """The rest of the three slots is empty."""
    every = (*records, *(slot(Stage.DORMANT, place) for place in range(len(records), len(SPACE.slots))))
    number = len(accuracies) if number is None else number
    return EpochSignals.of(number, losses, accuracies, every, [measured] * len(every), bits)
