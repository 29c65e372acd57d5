"""Runs as the episodes that a policy learns from: each a network of its own, an epoch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch.distributed as dist

from esper.control.ppo.controller import Learned, PpoController
from esper.control.ppo.episode import Episode
from esper.control.ppo.space import ActionSpace
from esper.distributed.growth import birth_generator
from esper.errors import TrainingDiverged
from esper.model import GrownModel
from esper.training.build import build_model
from esper.training.config import TrainConfig
from esper.training.history import EpochResult
from esper.training.tasks import ShardedTask
from esper.training.trainer import Trainer


def space_of(model: GrownModel, config: TrainConfig) -> ActionSpace:
    """What a policy can choose in this model."""
    ppo = config.ppo
    return ActionSpace(tuple(model.slot_ids), ppo.blueprints, ppo.blends, ppo.targets, ppo.tempos)


def fresh_policy(config: TrainConfig) -> Learned:
    """A policy for the config's host that has learned nothing, the same in every process."""
    return Learned.fresh(space_of(build_model(config), config), config.ppo, config.seed)


def costs_of(model: GrownModel, config: TrainConfig) -> dict[tuple[str, str], float]:
    """By slot and blueprint a seed's parameters as a share of the model's.

    Raises UnknownBlueprint for one that the model's slots can't have.
    """
    host = sum(parameter.numel() for parameter in model.parameters())
    costs = {}
    for slot_id in model.slot_ids:
        for name in config.ppo.blueprints:
            seed = model.slots[slot_id].prepare(name, birth_generator(config.seed, slot_id, 1))
            costs[slot_id, name] = sum(parameter.numel() for parameter in seed.parameters()) / host
    return costs


class Environment:
    """One run of the config's epochs, by its own seed; in `group` if several ranks train it together."""

    def __init__(
        self,
        config: TrainConfig,
        learned: Learned,
        costs: Mapping[tuple[str, str], float],
        task: ShardedTask,
        *,
        seed: int,
        device: str,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Collective where there is a group."""
        config = replace(config, seed=seed)
        self.controller = PpoController(learned, config.ppo, config.gates, config.epochs, costs)
        self._trainer = Trainer(build_model(config).to(device), task, self.controller, config, group=group)
        self._epochs: Iterator[EpochResult] = self._trainer.epochs()
        self.over = False

    def advance(self) -> None:
        """Collective where there is a group: one epoch more, until it is over. A run that diverges is over,
        as `PpoController.finished` has it.
        """
        try:
            self.over = next(self._epochs, None) is None
        except TrainingDiverged:
            self.over = True

    @property
    def accuracy(self) -> float:
        """Of the last epoch, in points; 0 before the first."""
        epochs = self._trainer.history.epochs
        return epochs[-1].accuracy if epochs else 0.0

    def episode(self) -> Episode:
        """What was done and what came of it, once it is over."""
        return self.controller.finished()

    def close(self) -> None:
        """Let go of groups."""
        self._trainer.close()
