"""Runs whose seeds live whole lives within a few epochs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from esper.control import Advance, Decision, EpochSignals, Germinate, Prune
from esper.lifecycle import Blend
from esper.training import Controller, TrainConfig, Trainer, build_model
from esper.training.tasks import ShardedTask

ALWAYS = {"min_improvement": -200.0, "min_training_epochs": 0, "min_blending_epochs": 0,
          "min_gradient_ratio": 0.0, "min_contribution": -200.0, "min_gradient_health": 0.0}  # fmt: skip
TINY: dict[str, Any] = {
    "batch_size": 8,
    "host": {"width": 2, "blocks": 3},
    "optimizer": {"name": "adam", "lr": 0.01},
    "slot": {"tempo": 2, "embargoed_epochs": 1},
    "gates": ALWAYS,
}


@dataclass
class Script:
    """A controller that plays a fixed plan: epoch to actions."""

    plan: dict[int, Decision] = field(default_factory=dict)

    def decide(self, signals: EpochSignals) -> Decision:
        return self.plan.get(signals.epoch, Decision())


def whole_life(
    slots: tuple[str, ...] = ("r0c0",),
    blueprint: str = "conv_light",
    blends: tuple[Blend | None, ...] = (None,),
) -> dict[int, Decision]:
    """Germinated in epoch 1, trained from 2, blended from 4, held from 6, kept from 8; slots follow.

    The seeds are mixed by `blends` in turn.
    """
    plan: dict[int, list[Any]] = {}
    for late, slot_id in enumerate(slots):
        plan.setdefault(1 + late, []).append(Germinate(slot_id, blueprint, blends[late % len(blends)]))
        for epoch in (2, 4, 6, 8):
            plan.setdefault(epoch + late, []).append(Advance(slot_id))
    return {epoch: Decision(tuple(actions)) for epoch, actions in plan.items()}


def eventful() -> dict[int, Decision]:
    """One seed kept, another pruned on its way in, its slot used again."""
    plan = whole_life()
    plan[3] = Decision((Germinate("r0c1", "attention"),))
    plan[4] = Decision((*plan[4].actions, Advance("r0c1")))
    plan[5] = Decision((Advance("r0c1"),))
    plan[7] = Decision((Prune("r0c1"),))
    plan[13] = Decision((Germinate("r0c1", "norm"),))
    return plan


def tiny_task(batch_size: int = 8, samples: int = 24, *, rank: int = 0, world_size: int = 1) -> ShardedTask:
    """Random pictures (N, 1, 4, 4) of four classes, some of them learnable; the last batch is smaller."""
    drawn = torch.Generator().manual_seed(0)
    pictures = torch.randn(samples - 3, 1, 4, 4, generator=drawn)
    classes = (pictures.mean(dim=(1, 2, 3)) > 0).long()
    return ShardedTask(
        train=(pictures, classes),
        test=(pictures, classes),
        batch_size=batch_size,
        seed=0,
        rank=rank,
        world_size=world_size,
    )


def tiny_trainer(
    controller: Controller | None = None, task: ShardedTask | None = None, **changes: Any
) -> Trainer:
    """A trainer of three tiny blocks on one process."""
    config = TrainConfig.from_dict({**TINY, **changes})
    return Trainer(build_model(config), task or tiny_task(), controller or Script(eventful()), config)
