"""Networks to grow in, and what the grown model asks of them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional

from esper.checks import check_int


class SlotPoint(NamedTuple):
    """A place where a slot attaches: its id, `r<row>c<col>`, and the channels of the features there."""

    slot_id: str
    channels: int


# Called by a host at each of its slot points: (slot id, features) -> features of the same shape.
Visit = Callable[[str, Tensor], Tensor]


@runtime_checkable
class Host(Protocol):
    """An `nn.Module` with slot points. Without a visitor it computes what it would without slots."""

    topology: str

    def slot_points(self) -> tuple[SlotPoint, ...]:
        """Where slots attach, in forward order."""
        ...

    def __call__(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        """Inputs (N, ...) to logits (N, classes), every slot point's features led through `visit`."""
        ...


class CnnHost(nn.Module):
    """Blocks of convolution, batch normalisation and ReLU, then mean over space and a linear layer.

    Channels double from block to block, starting at `width`; between blocks the picture is halved where it
    can be. After each block there is a slot point, `r0c0`, `r0c1`, ... Raises ConfigError for a size below
    1.
    """

    topology = "cnn"

    def __init__(self, in_channels: int = 1, classes: int = 10, width: int = 4, blocks: int = 2) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "classes": classes, "width": width, "blocks": blocks}
        for name, value in sizes.items():
            check_int(f"host.{name}", value, 1)
        widths = [width * 2**index for index in range(blocks)]
        self._points = tuple(SlotPoint(f"r0c{index}", channels) for index, channels in enumerate(widths))
        self.blocks = nn.ModuleList(
            _block(before, after) for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.head = nn.Linear(widths[-1], classes)

    def slot_points(self) -> tuple[SlotPoint, ...]:
        """One after each block."""
        return self._points

    def segment(self, index: int, h: Tensor) -> Tensor:
        """The stretch of the network that ends at slot point `index`; one past the last: the head.

        With it evaluations that differ only from some slot on can share what comes before.
        """
        if index == len(self.blocks):
            pooled: Tensor = self.head(h.mean(dim=(2, 3)))
            return pooled
        if index > 0 and min(h.shape[2:]) >= 2:
            h = functional.max_pool2d(h, 2)
        features: Tensor = self.blocks[index](h)
        return features

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        """(N, in_channels, H, W) to logits (N, classes)."""
        h = x
        for index, point in enumerate(self._points):
            h = self.segment(index, h)
            if visit is not None:
                h = visit(point.slot_id, h)
        return self.segment(len(self._points), h)


def _block(before: int, after: int) -> nn.Sequential:
    # No bias: the normalisation takes it out again.
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())
