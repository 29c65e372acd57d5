"""The part of a slot's state that has to be the same on every rank."""

from dataclasses import dataclass

from esper.lifecycle.config import Blend
from esper.lifecycle.stage import Stage


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """One slot's identity at one moment: what ranks compare, field by field and bit by bit."""

    slot_id: str
    stage: Stage
    blueprint: str | None  # None: no seed in the slot
    birth: int  # how many seeds this slot has had, the present one included
    epochs_in_stage: int  # at a decision: epochs trained in this stage, the present one included
    alpha: float
    alpha_target: float
    alpha_mode: int  # an AlphaMode
    ticks_left: int
    blend: Blend | None = None  # how the seed is mixed; None: no seed in the slot
