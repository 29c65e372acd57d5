"""The layouts of features that seeds are made for."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Size

from esper.errors import ConfigError


class Topology(NamedTuple):
    """A layout: its name, its letters, and which axis is the channels'."""

    name: str
    letters: str
    axis: int
    probes: tuple[tuple[int, ...], ...]  # sizes besides samples and channels to try seeds on

    def probe_shape(self, samples: int, channels: int, size: tuple[int, ...]) -> tuple[int, ...]:
        """`size` with samples and channels in their places."""
        inner = [*size]
        inner.insert(self.axis - 1, channels)
        return (samples, *inner)

    def fits(self, channels: int, shape: Size) -> bool:
        """Whether `shape` is of this layout with this many channels."""
        return len(shape) == len(self.letters) and shape[self.axis] == channels


# Odd and unequal sizes, and size 1: a seed that rounds or flattens shows itself.
TOPOLOGIES: Mapping[str, Topology] = MappingProxyType(
    {
        "cnn": Topology("cnn", "NCHW", 1, ((5, 3), (1, 1))),
        "transformer": Topology("transformer", "NTC", 2, ((5,), (1,))),
    }
)


def topology(key: str, name: str) -> Topology:
    """The layout of this name. Raises ConfigError naming `key` for one that is not known."""
    if name not in TOPOLOGIES:
        raise ConfigError(key, name, f"one of {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[name]
