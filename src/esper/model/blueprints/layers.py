"""Layers whose random numbers come from a generator: torch's own constructors draw from the global one."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

BIRTH_SCALE = 0.1  # share of a seed's new path at birth: near the identity, yet with gradients to learn from


def linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """nn.Linear with its usual distribution; the bias starts at 0."""
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    _fill(layer, generator)
    return layer


def conv(inputs: int, outputs: int, size: int, generator: torch.Generator, *, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps height and width, with nn.Conv2d's usual distribution."""
    options: dict[str, Any] = {"padding": size // 2, "bias": False, "groups": groups}
    layer: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, inputs, outputs, size, **options
    )
    _fill(layer, generator)
    return layer


def scale(*shape: int) -> nn.Parameter:
    """What a seed's new path is multiplied with (LayerScale, Touvron et al. 2021, arXiv:2103.17239)."""
    return nn.Parameter(torch.full(shape, BIRTH_SCALE))


def _fill(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
