"""The contract of every blueprint, and of the registry."""

import pytest
import torch
from torch import Tensor, nn

from esper.errors import ConfigError, ShapeMismatch, UnknownBlueprint, UnknownBlueprintOption
from esper.model import blueprint, blueprint_names, build, parameter_count
from esper.model.blueprints import registry

CNN = blueprint_names("cnn")
TRANSFORMER = blueprint_names("transformer")
ALL = [("cnn", name) for name in CNN] + [("transformer", name) for name in TRANSFORMER]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry to add to."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def features(topology: str, samples: int, channels: int, size: tuple[int, ...]) -> Tensor:
    shape = (samples, channels, *size) if topology == "cnn" else (samples, *size, channels)
    return torch.randn(shape, generator=generator(8))


def test_what_comes_with_the_package() -> None:
    assert CNN == ("attention", "bottleneck", "conv_heavy", "conv_light", "conv_small", "depthwise", "norm")
    assert TRANSFORMER == ("attention", "lora", "lora_large", "mlp", "mlp_small", "norm")


@pytest.mark.parametrize(("topology", "name"), ALL)
@pytest.mark.parametrize(
    ("samples", "channels", "place"), [(2, 4, 0), (1, 4, 1), (3, 4, 2), (1, 1, 3), (2, 6, 1), (2, 7, 3)]
)
def test_any_shape_is_kept_near_the_identity_and_finite(
    topology: str, name: str, samples: int, channels: int, place: int
) -> None:
    sizes: list[tuple[int, ...]] = [(8, 8), (5, 3), (1, 1), (7, 2)]
    given = features(topology, samples, channels, sizes[place][: None if topology == "cnn" else 1])
    output = build(topology, name, channels, generator())(given)
    assert output.shape == given.shape
    assert torch.isfinite(output).all()
    assert not torch.equal(output, given) or channels == 1
    assert (output - given).norm() <= 0.2 * given.norm()


@pytest.mark.parametrize(("topology", "name"), ALL)
def test_every_parameter_learns_from_the_first_step(topology: str, name: str) -> None:
    seed = build(topology, name, 8, generator())
    given = features(topology, 2, 8, (8, 8) if topology == "cnn" else (8,))
    (seed(given) ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 1e-6 for p in seed.parameters())


@pytest.mark.parametrize(("topology", "name"), ALL)
def test_all_randomness_is_the_generators(topology: str, name: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (build(topology, name, 4, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.isfinite(a).all() for a, _ in pairs)
    others = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in others) == (name != "norm")


@pytest.mark.parametrize("name", TRANSFORMER)
def test_no_token_sees_what_follows(name: str) -> None:
    seed = build("transformer", name, 8, generator())
    given = features("transformer", 1, 8, (6,))
    changed = given.clone()
    changed[:, 4:] += 1.0
    assert torch.equal(seed(given)[:, :4], seed(changed)[:, :4])
    assert not torch.equal(seed(given)[:, 4:], seed(changed)[:, 4:])


@pytest.mark.parametrize(
    ("topology", "name", "count"),
    [
        ("cnn", "norm", 2 * 8 + 1),
        ("cnn", "attention", 8 * 2 + 2 + 2 * 8 + 8 + 8),
        ("cnn", "conv_small", 64 + 3 * 8),
        ("cnn", "conv_light", 9 * 64 + 3 * 8),
        ("cnn", "conv_heavy", 18 * 64 + 5 * 8),
        ("cnn", "depthwise", 64 + 12 * 8),
        ("cnn", "bottleneck", 2 * 2 * 8 + 9 * 4 + 2 * 2 + 3 * 8),
        ("transformer", "norm", 2 * 8 + 1),
        ("transformer", "lora", 2 * 8 * 4 + 3 * 8),
        ("transformer", "lora_large", 2 * 8 * 16 + 3 * 8),
        ("transformer", "attention", 4 * 64 + 4 * 8),
        ("transformer", "mlp_small", 2 * 64 + 5 * 8),
        ("transformer", "mlp", 8 * 64 + 8 * 8),
    ],
)
def test_sizes_are_those_of_the_real_module(topology: str, name: str, count: int) -> None:
    assert parameter_count(topology, name, 8) == count
    assert sum(p.numel() for p in build(topology, name, 8, generator()).parameters()) == count


def test_options_change_what_is_built() -> None:
    assert parameter_count("transformer", "lora", 8, size=2) < parameter_count("transformer", "lora", 8)
    assert parameter_count("transformer", "mlp", 8, factor=1) == parameter_count(
        "transformer", "mlp_small", 8
    )


@pytest.mark.parametrize(("topology", "name", "known"), [("cnn", "lora", CNN), ("graph", "norm", ())])
def test_an_unknown_one_is_refused_with_those_that_exist(
    topology: str, name: str, known: tuple[str, ...]
) -> None:
    with pytest.raises(UnknownBlueprint) as caught:
        build(topology, name, 4, generator())
    assert caught.value.known == known


def test_an_unknown_option_is_refused_with_those_that_exist(scratch: None) -> None:
    @blueprint("cnn", "widened")
    def widened(channels: int, generator: torch.Generator, *, factor: int = 2) -> nn.Module:
        return nn.Identity()

    build("cnn", "widened", 4, generator(), factor=3)
    with pytest.raises(UnknownBlueprintOption) as caught:
        build("cnn", "widened", 4, generator(), depth=3)
    assert (caught.value.option, caught.value.known) == ("depth", ("factor",))


def test_a_topology_that_nobody_can_host_is_refused(scratch: None) -> None:
    with pytest.raises(ConfigError, match=r"blueprint\.topology='graph'.*one of cnn, transformer"):
        blueprint("graph", "norm")


def test_a_name_is_given_once(scratch: None) -> None:
    with pytest.raises(ConfigError, match=r"blueprint\.cnn='norm'"):
        blueprint("cnn", "norm")(nn.Identity)


class _Shrinking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : max(1, x.shape[2] // 2 * 2)]


class _Counting(nn.Module):
    """Changes with each training pass, in the ways that modules do."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.drop(self.norm(x))
        return dropped


def test_a_seed_that_changes_the_shape_is_refused(scratch: None) -> None:
    blueprint("cnn", "shrinking")(lambda channels, generator: _Shrinking())
    with pytest.raises(ShapeMismatch) as caught:
        build("cnn", "shrinking", 4, generator())
    assert (caught.value.expected, caught.value.got) == ((2, 4, 5, 3), (2, 4, 4, 3))


def test_checking_the_shape_leaves_no_trace_in_the_seed(scratch: None) -> None:
    blueprint("cnn", "counting")(_Counting)
    before = torch.get_rng_state()
    seed = build("cnn", "counting", 4, generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert seed.get_buffer("norm.num_batches_tracked") == 0
    assert all(module.training for module in seed.modules())
