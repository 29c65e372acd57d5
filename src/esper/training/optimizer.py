"""The optimiser of a model whose parameters come and go."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import nn

from esper.training.config import OptimizerConfig, OptimizerName

_FUSED = frozenset({"cpu", "cuda"})  # where every version that is allowed here has such a step


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser over `parameters`, in one group."""
    current = list(parameters)
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name is OptimizerName.ADAM:
        # In one go at a quarter of the time that it takes tensor by tensor. torch's SGD has that as well, but
        # raises where some parameters have a momentum and others are new.
        fused = all(parameter.device.type in _FUSED for parameter in current)
        return torch.optim.Adam(current, **common, fused=fused)
    return torch.optim.SGD(current, **common, momentum=config.momentum)


def follow_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Make `parameters` those that the optimiser steps, in this order. The state of those that stay is kept.

    A frozen parameter stays a parameter of the optimiser, without a gradient, so that its momentum survives.
    """
    current, before = list(parameters), optimizer.param_groups[0]["params"]
    if len(current) == len(before) and all(map(is_, current, before)):
        return
    optimizer.param_groups[0]["params"] = current
    kept = {id(parameter) for parameter in current}  # a tensor's own hash is a call of Python's
    for parameter in [parameter for parameter in optimizer.state if id(parameter) not in kept]:
        del optimizer.state[parameter]
