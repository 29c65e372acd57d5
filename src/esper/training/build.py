"""A model as its config says."""

from __future__ import annotations

import torch

from esper.model import CnnHost, GrownModel
from esper.training.config import TrainConfig


def build_model(config: TrainConfig, *, in_channels: int = 1, classes: int = 10) -> GrownModel:
    """The configured host with its slots, the same in every process; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: `torch.manual_seed` also keeps a note with a whole stack for each kind of device
        # that this process might use some day.
        torch.default_generator.manual_seed(config.seed)
        host = CnnHost(
            in_channels=in_channels, classes=classes, width=config.host.width, blocks=config.host.blocks
        )
    return GrownModel(host, config.slot)
