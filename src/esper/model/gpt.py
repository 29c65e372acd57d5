"""A small pre-norm GPT to grow in (Radford et al. 2019)."""

import math

import torch
from torch import Tensor, nn

from esper.checks import check_int
from esper.errors import ConfigError
from esper.model.attention import causal_attention
from esper.model.host import SlotPoint, Visit


class GptHost(nn.Module):
    """Tokens (N, T), T at most `context`, to logits (N, T, vocabulary), each from what came up to there.

    After each block there is a slot point, `r0c0`, `r0c1`, ... Raises ConfigError for a size below 1 or a
    width that `heads` do not divide.
    """

    topology = "transformer"

    def __init__(
        self, vocabulary: int = 256, context: int = 64, width: int = 32, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        sizes = {
            "vocabulary": vocabulary, "context": context, "width": width, "heads": heads, "blocks": blocks,
        }  # fmt: skip
        for name, value in sizes.items():
            check_int(f"host.{name}", value, 1)
        if width % heads:
            raise ConfigError("host.width", width, f"a multiple of host.heads={heads}")
        self.context = context
        self._points = tuple(SlotPoint(f"r0c{index}", width) for index in range(blocks))
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads, blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def slot_points(self) -> tuple[SlotPoint, ...]:
        """One after each block."""
        return self._points

    def segment(self, index: int, h: Tensor) -> Tensor:
        """The stretch of the network that ends at slot point `index`; one past the last: the head.

        Raises ConfigError for more tokens than the context has.
        """
        if index == 0:
            if h.shape[1] > self.context:
                raise ConfigError("tokens", h.shape[1], f"at most host.context={self.context} in a sample")
            h = self.tokens(h) + self.positions(torch.arange(h.shape[1], device=h.device))
        if index == len(self.blocks):
            logits: Tensor = self.head(self.norm(h))
            return logits
        features: Tensor = self.blocks[index](h)
        return features

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        """(N, T) integers to logits (N, T, vocabulary)."""
        h = x
        for index, point in enumerate(self._points):
            h = self.segment(index, h)
            if visit is not None:
                h = visit(point.slot_id, h)
        return self.segment(len(self._points), h)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_before_attention, self.norm_before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        # The sum over the residual paths keeps its size whatever the depth.
        last = self.mlp[2]
        assert isinstance(last, nn.Linear)
        for layer in (self.out, last):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * blocks))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self._attend(self.norm_before_attention(h))
        added: Tensor = self.mlp(self.norm_before_mlp(h))
        return h + added

    def _attend(self, h: Tensor) -> Tensor:
        result: Tensor = self.out(causal_attention(self.mix(h), self.heads))
        return result
