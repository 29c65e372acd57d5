"""The learnt gate of a slot that mixes by GATE."""

import torch
from torch import Tensor, nn

from esper.model.blueprints.layers import linear
from esper.model.topology import TOPOLOGIES


class Gate(nn.Module):
    """How much of the seed to let in, in (0, 1): Linear(C, max(8, C // 4)) -> ReLU -> Linear -> sigmoid.

    For pictures (N, C, H, W) one number a sample, (N, 1, 1, 1), from the mean over space. For text (N, T, C)
    one a token, (N, T, 1): a mean over T would show each token those that follow it.
    """

    def __init__(self, channels: int, topology: str, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(8, channels // 4)
        self.pools = TOPOLOGIES[topology].axis == 1
        self.inner = linear(channels, hidden, generator)
        self.outer = linear(hidden, 1, generator)

    def forward(self, h: Tensor) -> Tensor:
        """Features the seed reads, (N, C, H, W) or (N, T, C), to the gate, which broadcasts over them."""
        pooled = h.mean(dim=(2, 3)) if self.pools else h
        share: Tensor = torch.sigmoid(self.outer(torch.relu(self.inner(pooled))))
        return share[:, :, None, None] if self.pools else share


class GatedSeed(nn.Module):
    """A seed and the gate before it; by itself it computes what the seed does."""

    def __init__(self, body: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.body, self.gate = body, gate

    def forward(self, h: Tensor) -> Tensor:
        """(N, ...) to the same shape."""
        output: Tensor = self.body(h)
        return output
