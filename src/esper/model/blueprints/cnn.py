"""Seeds for convolutional features (N, C, H, W).

Normalisation is over channels and space of one sample: a seed keeps no statistics, so nothing of it can
differ between ranks within an epoch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from esper.model.blueprints.registry import blueprint

_BIRTH_SCALE = 0.1  # share of the new path at birth: near the identity, yet with gradients to learn from


@blueprint("cnn", "norm")
class NormSeed(nn.Module):
    """Moves features towards their normalised form: x + scale * (norm(x) - x). 2C + 1 parameters."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.scale = nn.Parameter(torch.full((1,), _BIRTH_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        normalised: Tensor = self.norm(x)
        return x + self.scale * (normalised - x)


@blueprint("cnn", "conv_light")
class ConvLightSeed(nn.Module):
    """One 3x3 convolution beside the identity: x + scale * relu(norm(conv(x))). 9C^2 + 3C parameters.

    The scale is per channel (LayerScale, Touvron et al. 2021, arXiv:2103.17239).
    """

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        # Constructing a Conv2d draws from the global RNG; skip_init leaves that to the generator below.
        self.conv = skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, channels, channels, 3, padding=1, bias=False
        )
        nn.init.kaiming_uniform_(self.conv.weight, a=math.sqrt(5), generator=generator)
        self.norm = nn.GroupNorm(1, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), _BIRTH_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x + self.scale * torch.relu(self.norm(self.conv(x)))
