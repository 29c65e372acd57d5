"""A run's parts as its config says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from esper.control import ControllerName, HeuristicController, IdleController, RandomController
from esper.control.ppo.controller import Learned, PpoController
from esper.errors import ConfigError, DataError
from esper.model import CnnHost, GptHost, GrownModel
from esper.training.config import HostName, TrainConfig
from esper.training.tasks import (
    ShardedTask,
    TaskName,
    load_cifar10_task,
    load_digits_task,
    load_pydoc_task,
)
from esper.training.trainer import Controller


class Shape(NamedTuple):
    """What a task asks of its host."""

    in_channels: int  # of pictures; 0 for text
    classes: int  # or the size of the vocabulary


SHAPES: Mapping[TaskName, Shape] = MappingProxyType(
    {TaskName.DIGITS: Shape(1, 10), TaskName.PYDOC: Shape(0, 256), TaskName.CIFAR10: Shape(3, 10)}
)


def build_model(config: TrainConfig, *, in_channels: int = 1, classes: int = 10) -> GrownModel:
    """The configured host with its slots, the same in every process; the global generator is left alone.

    For a GPT `classes` is the vocabulary. A named task's shape goes before both.
    """
    in_channels, classes = SHAPES.get(config.task, (in_channels, classes))
    size = config.host
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: `torch.manual_seed` also keeps a note with a whole stack for each kind of device
        # that this process might use some day.
        torch.default_generator.manual_seed(config.seed)
        host: CnnHost | GptHost
        if size.name is HostName.GPT:
            host = GptHost(classes, size.context, size.width, size.heads, size.blocks)
        else:
            host = CnnHost(in_channels=in_channels, classes=classes, width=size.width, blocks=size.blocks)
    return GrownModel(host, config.slot)


def build_task(
    config: TrainConfig, *, data_dir: Path | None = None, rank: int = 0, world_size: int = 1
) -> ShardedTask:
    """This rank's share of the configured task; `data_dir` is where data lies that doesn't come along.

    Raises ConfigError for a task or a host that don't go together, DataError for data that isn't there.
    """
    text = config.task is TaskName.PYDOC
    if text != (config.host.name is HostName.GPT):
        accepted = f"{HostName.GPT if text else HostName.CNN} for task {config.task}"
        raise ConfigError("host.name", str(config.host.name), accepted)
    share: dict[str, Any] = {
        "batch_size": config.batch_size, "seed": config.seed, "rank": rank, "world_size": world_size
    }  # fmt: skip
    match config.task:
        case TaskName.DIGITS:
            return load_digits_task(**share)
        case TaskName.PYDOC:
            return load_pydoc_task(context=config.host.context, **share)
        case TaskName.CIFAR10:
            if data_dir is None:
                raise DataError("cifar10", "it does not come along", "say where it lies: --data-dir DIR")
            return load_cifar10_task(data_dir, **share)
    raise ConfigError("task", str(config.task), "a task by name, or one of your own given to the trainer")


def build_controller(config: TrainConfig, learned: Learned | None = None) -> Controller:
    """The configured controller; one that goes by a policy does what `learned` holds for the likeliest.

    Raises ConfigError for one of the caller's own, and for such a one without a policy.
    """
    match config.controller:
        case ControllerName.HEURISTIC:
            return HeuristicController(config.heuristic, config.gates)
        case ControllerName.RANDOM:
            return RandomController(config.random)
        case ControllerName.NONE:
            return IdleController()
        case ControllerName.PPO:
            if learned is None:
                raise ConfigError("controller", "ppo", "given what `Learner` or `load_policy` has learned")
            return PpoController(learned, config.ppo, config.gates, config.epochs, greedy=True)
    accepted = "a controller by name, or one of your own given to the trainer"
    raise ConfigError("controller", str(config.controller), accepted)
