"""What the examples train: a small CNN with slots, on scikit-learn's pictures of handwritten digits.

Two sets of thresholds, both by config alone; the code is what any run uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from esper.control import HeuristicController
from esper.training import TrainConfig, Trainer, build_model
from esper.training.tasks import load_digits_task
from pytest_esper_ddp.handle import DDP

# Seconds after which the program itself gives up on a rank that does not come to an exchange.
DEADLINE = 1.5

# A seed is germinated on the first plateau and kept some six epochs later.
GROWING: dict[str, Any] = {
    "run": "digits",
    "epochs": 20,
    "batch_size": 32,
    "optimizer": {"name": "adam", "lr": 0.01},
    "slot": {"tempo": 2},
    "heuristic": {
        "blueprints": ["conv_light"],
        "plateau_epochs": 1,
        "plateau_points": 5.0,
        "stable_epochs": 1,
        "stable_fall": 0.5,
    },
    "gates": {"min_training_epochs": 2, "min_blending_epochs": 2},
    "agreement": {"deadline": DEADLINE},
}
# No gain is ever small enough for a plateau: the same host, never grown.
HOST_ALONE: dict[str, Any] = {**GROWING, "heuristic": {**GROWING["heuristic"], "plateau_points": -200.0}}
# Every epoch is a plateau and every gate lets pass: a decision in each epoch from the second on.
EAGER: dict[str, Any] = {
    **GROWING,
    "epochs": 6,
    "heuristic": {**GROWING["heuristic"], "plateau_points": 200.0, "stable_fall": 1.0, "stable_rise": 1.0},
    "gates": {"min_improvement": -200.0, "min_training_epochs": 1, "min_blending_epochs": 1},
}


def trainer(ddp: DDP, settings: Mapping[str, Any]) -> Trainer:
    """Collective: every rank, same order. A trainer over the default group, on this rank's device."""
    config = TrainConfig.from_dict(settings)
    task = load_digits_task(
        batch_size=config.batch_size, seed=config.seed, rank=ddp.rank, world_size=ddp.world_size
    )
    controller = HeuristicController(config.heuristic, config.gates)
    return Trainer(build_model(config).to(ddp.device), task, controller, config, group=dist.group.WORLD)
