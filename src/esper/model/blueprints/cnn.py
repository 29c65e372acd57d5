"""Seeds for convolutional features (N, C, H, W).

Normalisation is over channels and space of one sample: a seed keeps no statistics, so nothing of it can
differ between ranks within an epoch. Each is the identity plus a new path that counts for a tenth at birth.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.model.blueprints.layers import conv, linear, scale
from esper.model.blueprints.registry import blueprint


@blueprint("cnn", "norm")
class NormSeed(nn.Module):
    """Moves features towards their normalised form: x + scale * (norm(x) - x). 2C + 1 parameters."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.scale = scale(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        normalised: Tensor = self.norm(x)
        return x + self.scale * (normalised - x)


@blueprint("cnn", "attention")
class AttentionSeed(nn.Module):
    """Weighs channels by what the whole picture shows (squeeze-excite, Hu et al. 2018, arXiv:1709.01507).

    x + scale * x * tanh(outer(softplus(inner(mean(x))))), the hidden width C // `reduction`, at least 1. With
    tanh for the usual sigmoid a channel can be turned up as well as down; a ReLU that is off learns nothing.
    """

    def __init__(self, channels: int, generator: torch.Generator, *, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.inner = linear(channels, hidden, generator)
        self.outer = linear(hidden, channels, generator)
        self.scale = scale(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        hidden = functional.softplus(self.inner(x.mean(dim=(2, 3))))
        weights = torch.tanh(self.outer(hidden))
        return x + self.scale * x * weights[:, :, None, None]


class _ConvSeed(nn.Module):
    """x + scale * relu(norm(path(x))), the scale per channel."""

    def __init__(self, channels: int, path: nn.Module) -> None:
        super().__init__()
        self.conv = path
        self.norm = nn.GroupNorm(1, channels)
        self.scale = scale(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x + self.scale * torch.relu(self.norm(self.conv(x)))


@blueprint("cnn", "conv_small")
class ConvSmallSeed(_ConvSeed):
    """One 1x1 convolution beside the identity. C^2 + 3C parameters."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__(channels, conv(channels, channels, 1, generator))


@blueprint("cnn", "conv_light")
class ConvLightSeed(_ConvSeed):
    """One 3x3 convolution beside the identity. 9C^2 + 3C parameters."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__(channels, conv(channels, channels, 3, generator))


@blueprint("cnn", "conv_heavy")
class ConvHeavySeed(_ConvSeed):
    """Two 3x3 convolutions, the first normalised, beside the identity. 18C^2 + 5C parameters."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        first, second = (conv(channels, channels, 3, generator) for _ in range(2))
        super().__init__(channels, nn.Sequential(first, nn.GroupNorm(1, channels), nn.ReLU(), second))


@blueprint("cnn", "depthwise")
class DepthwiseSeed(_ConvSeed):
    """A 3x3 convolution of each channel by itself, then a 1x1 over all. C^2 + 12C parameters."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        each = conv(channels, channels, 3, generator, groups=channels)
        super().__init__(channels, nn.Sequential(each, conv(channels, channels, 1, generator)))


@blueprint("cnn", "bottleneck")
class BottleneckSeed(_ConvSeed):
    """1x1 down to B = max(1, C // `reduction`) channels, 3x3 there, 1x1 up.

    2BC + 9B^2 + 2B + 3C parameters.
    """

    def __init__(self, channels: int, generator: torch.Generator, *, reduction: int = 4) -> None:
        inner = max(1, channels // reduction)
        down, at, up = (
            conv(channels, inner, 1, generator),
            conv(inner, inner, 3, generator),
            conv(inner, channels, 1, generator),
        )
        super().__init__(channels, nn.Sequential(down, at, nn.GroupNorm(1, inner), nn.ReLU(), up))
