"""Stages of a seed's life and the steps between them."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class Stage(IntEnum):
    """Where a slot is. The codes are persisted, so they are a format: 5 is retired, 0 is unknown."""

    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    HOLDING = 6
    FOSSILIZED = 7
    PRUNED = 8
    EMBARGOED = 9
    RESETTING = 10


# The first entry of each row is where `advance` and the cooldown lead.
TRANSITIONS: Mapping[Stage, tuple[Stage, ...]] = MappingProxyType(
    {
        Stage.DORMANT: (Stage.GERMINATED,),
        Stage.GERMINATED: (Stage.TRAINING, Stage.PRUNED),
        Stage.TRAINING: (Stage.BLENDING, Stage.PRUNED),
        Stage.BLENDING: (Stage.HOLDING, Stage.PRUNED),
        Stage.HOLDING: (Stage.FOSSILIZED, Stage.BLENDING, Stage.PRUNED),
        Stage.FOSSILIZED: (),
        Stage.PRUNED: (Stage.EMBARGOED,),
        Stage.EMBARGOED: (Stage.RESETTING,),
        Stage.RESETTING: (Stage.DORMANT,),
    }
)

_IN_FORWARD = frozenset({Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED})
_COOLDOWN = frozenset({Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING})
_SEEDED = _IN_FORWARD | {Stage.GERMINATED}


def next_stage(stage: Stage) -> Stage | None:
    """Where `advance` or the cooldown leads from here; None from FOSSILIZED, which is terminal."""
    following = TRANSITIONS[stage]
    return following[0] if following else None


def can_move(current: Stage, target: Stage) -> bool:
    """Whether the table has a step from `current` to `target`."""
    return target in TRANSITIONS[current]


def in_forward(stage: Stage) -> bool:
    """Whether the slot's seed takes part in the forward pass."""
    return stage in _IN_FORWARD


def has_seed(stage: Stage) -> bool:
    """Whether the slot holds a seed at all."""
    return stage in _SEEDED


def in_cooldown(stage: Stage) -> bool:
    """Whether the slot waits, after a prune, to become DORMANT again."""
    return stage in _COOLDOWN
