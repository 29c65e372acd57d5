"""The optimiser of a model whose parameters come and go."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from esper.training.config import OptimizerConfig, OptimizerName


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser over `parameters`, in one group."""
    if config.name is OptimizerName.ADAM:
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def follow_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Make `parameters` those that the optimiser steps, in this order. The state of those that stay is kept.

    A frozen parameter stays a parameter of the optimiser, without a gradient, so that its momentum survives.
    """
    current = list(parameters)
    optimizer.param_groups[0]["params"] = current
    kept = set(current)
    for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
        del optimizer.state[parameter]
