"""Seeds for token features (N, T, C). None lets a token see what follows it.

Each is the identity plus a new path that counts for a tenth at birth.
"""

import math

import torch
from torch import Tensor, nn

from esper.model.attention import causal_attention
from esper.model.blueprints.layers import linear, scale
from esper.model.blueprints.registry import blueprint


@blueprint("transformer", "norm")
class TokenNormSeed(nn.Module):
    """Moves each token towards its normalised form: x + scale * (norm(x) - x). 2C + 1 parameters."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.scale = scale(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same shape."""
        normalised: Tensor = self.norm(x)
        return x + self.scale * (normalised - x)


class _PathSeed(nn.Module):
    """x + scale * path(norm(x)), the scale per channel."""

    def __init__(self, channels: int, path: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.path = path
        self.scale = scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same shape."""
        added: Tensor = self.path(self.norm(x))
        return x + self.scale * added


@blueprint("transformer", "lora")
class LoraSeed(_PathSeed):
    """A linear map of low rank, C -> `size` -> C, both halves random. 2C `size` + 3C parameters.

    Hu et al. 2021 (arXiv:2106.09685) start the second half at 0, so that the first does not learn in the
    first step; the scale does that here.
    """

    def __init__(self, channels: int, generator: torch.Generator, *, size: int = 4) -> None:
        down = linear(channels, size, generator, bias=False)
        super().__init__(channels, nn.Sequential(down, linear(size, channels, generator, bias=False)))


@blueprint("transformer", "lora_large")
class LoraLargeSeed(LoraSeed):
    """`lora` with a larger middle."""

    def __init__(self, channels: int, generator: torch.Generator, *, size: int = 16) -> None:
        super().__init__(channels, generator, size=size)


class _CausalAttention(nn.Module):
    def __init__(self, channels: int, generator: torch.Generator, heads: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, heads)
        # Without biases: that of the keys adds the same to all scores of a token, and never learns.
        self.mix = linear(channels, 3 * channels, generator, bias=False)
        self.out = linear(channels, channels, generator)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(causal_attention(self.mix(x), self.heads))
        return result


@blueprint("transformer", "attention")
class CausalAttentionSeed(_PathSeed):
    """Causal self-attention with `heads` heads, or the most that divide C evenly. 4C^2 + 4C parameters."""

    def __init__(self, channels: int, generator: torch.Generator, *, heads: int = 4) -> None:
        super().__init__(channels, _CausalAttention(channels, generator, heads))


class _Mlp(_PathSeed):
    def __init__(self, channels: int, hidden: int, generator: torch.Generator) -> None:
        inner, outer = linear(channels, hidden, generator), linear(hidden, channels, generator)
        super().__init__(channels, nn.Sequential(inner, nn.GELU(), outer))


@blueprint("transformer", "mlp_small")
class MlpSmallSeed(_Mlp):
    """Two linear layers with GELU, `factor` times as wide in the middle. 2fC^2 + (f + 4)C parameters."""

    def __init__(self, channels: int, generator: torch.Generator, *, factor: int = 1) -> None:
        super().__init__(channels, factor * channels, generator)


@blueprint("transformer", "mlp")
class MlpSeed(_Mlp):
    """`mlp_small` with the usual width in the middle."""

    def __init__(self, channels: int, generator: torch.Generator, *, factor: int = 4) -> None:
        super().__init__(channels, factor * channels, generator)
