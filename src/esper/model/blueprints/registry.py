"""Blueprints by topology and name, and how a seed is built from one.

Contract of a blueprint: the output has the input's shape for any H, W or T; near-identity at birth; every
random number comes from the generator it is given.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from esper.errors import ConfigError, SeedRefused, ShapeMismatch, UnknownBlueprint, UnknownBlueprintOption
from esper.model.topology import TOPOLOGIES
from esper.model.topology import topology as layout

Builder = Callable[..., nn.Module]  # (channels: int, generator: torch.Generator, *, options...)
_B = TypeVar("_B", bound=Builder)

_REGISTRY: dict[tuple[str, str], Builder] = {}
# A seed's attribute: the topology, the channels, device and dtype of the features whose shape it keeps.
# Running one on a few sizes of them takes as long as drawing its weights.
_KEEPS = "_keeps_shape_of"


def blueprint(topology: str, name: str) -> Callable[[_B], _B]:
    """Register a builder, or a module class, under this name.

    It is called as `builder(channels, generator, **options)`; its keyword-only parameters are its options.
    Raises ConfigError when the name is taken, or for a topology that is not known.
    """
    layout("blueprint.topology", topology)

    def register(builder: _B) -> _B:
        if (topology, name) in _REGISTRY:
            raise ConfigError(f"blueprint.{topology}", name, "a name that is not registered yet")
        _REGISTRY[topology, name] = builder
        return builder

    return register


def blueprint_names(topology: str) -> tuple[str, ...]:
    """Names registered for this topology, sorted."""
    return tuple(sorted(name for known, name in _REGISTRY if known == topology))


def build(
    topology: str, name: str, channels: int, generator: torch.Generator, **options: object
) -> nn.Module:
    """A new seed for features of `channels` channels, on the CPU, its weights drawn from `generator` only.

    Raises UnknownBlueprint, UnknownBlueprintOption, ShapeMismatch when the seed does not keep its input's
    shape, or SeedRefused when it cannot be run at all.
    """
    seed = _make(topology, name, channels, generator, options)
    check_shapes(f"blueprint {name!r} for topology {topology!r}", topology, seed, channels)
    return seed


def build_again(topology: str, name: str, channels: int, generator: torch.Generator) -> nn.Module:
    """As `build`, which has built this blueprint's seed for as many channels before: this one is not run."""
    seed = _make(topology, name, channels, generator, {})
    like = torch.empty(())
    setattr(seed, _KEEPS, (topology, channels, like.device, like.dtype))
    return seed


def _make(
    topology: str, name: str, channels: int, generator: torch.Generator, options: Mapping[str, object]
) -> nn.Module:
    builder = _REGISTRY.get((topology, name))
    if builder is None:
        raise UnknownBlueprint(topology, name, blueprint_names(topology))
    known = _options(builder)
    for option in options:
        if option not in known:
            raise UnknownBlueprintOption(topology, name, option, known)
    return builder(channels, generator, **options)


def parameter_count(topology: str, name: str, channels: int, **options: object) -> int:
    """How many parameters this blueprint's seed has at `channels` channels, counted in a real one.

    Raises as `build`.
    """
    seed = build(topology, name, channels, torch.Generator(), **options)
    return sum(parameter.numel() for parameter in seed.parameters())


def _options(builder: Builder) -> tuple[str, ...]:
    parameters = inspect.signature(builder).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def check_shapes(
    where: str, topology: str, seed: nn.Module, channels: int, like: Tensor | None = None
) -> None:
    """Run `seed` on features of a few odd sizes, on the device and of the dtype of `like`, unless it was
    before.

    In eval mode; it is in training mode afterwards.

    Raises ShapeMismatch when it does not keep their shape, SeedRefused when it cannot be run on them.
    """
    like = torch.empty(()) if like is None else like
    features = topology, channels, like.device, like.dtype
    if getattr(seed, _KEEPS, None) == features:
        return
    # In eval mode no statistics move and no dropout draws.
    seed.eval()
    known = TOPOLOGIES[topology]
    with torch.no_grad():
        for size in known.probes:
            given = known.probe_shape(2, channels, size)
            try:
                shape = tuple(seed(like.new_zeros(given)).shape)
            except Exception as error:
                raise SeedRefused(where, given, f"{type(error).__name__}: {error}") from error
            if shape != given:
                raise ShapeMismatch(where, given, shape)
    seed.train()
    setattr(seed, _KEEPS, features)
