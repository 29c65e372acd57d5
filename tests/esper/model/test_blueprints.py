"""The contract of every blueprint, and of the registry."""

import pytest
import torch
from torch import Tensor, nn

from esper.errors import ConfigError, ShapeMismatch, UnknownBlueprint, UnknownBlueprintOption
from esper.model import blueprint, blueprint_names, build
from esper.model.blueprints import registry

CNN = blueprint_names("cnn")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry to add to."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def test_what_comes_with_the_package() -> None:
    assert CNN == ("conv_light", "norm")


@pytest.mark.parametrize("name", CNN)
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 4, 5, 3), (3, 4, 1, 1), (1, 1, 7, 2)])
def test_any_shape_is_kept_near_the_identity_and_finite(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features = torch.randn(shape)
    output = build("cnn", name, shape[1], generator())(features)
    assert output.shape == features.shape
    assert torch.isfinite(output).all()
    assert (output - features).norm() <= 0.2 * features.norm()


@pytest.mark.parametrize("name", CNN)
def test_every_parameter_learns_from_the_first_step(name: str) -> None:
    torch.manual_seed(0)
    seed = build("cnn", name, 4, generator())
    (seed(torch.randn(2, 4, 8, 8)) ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 1e-6 for p in seed.parameters())


@pytest.mark.parametrize("name", CNN)
def test_all_randomness_is_the_generators(name: str) -> None:
    before = torch.get_rng_state()
    one, same = build("cnn", name, 4, generator(1)), build("cnn", name, 4, generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.isfinite(a).all() for a, _ in pairs)


def test_another_generator_gives_another_convolution() -> None:
    one, other = (build("cnn", "conv_light", 4, generator(seed)) for seed in (1, 2))
    assert not torch.equal(one.get_parameter("conv.weight"), other.get_parameter("conv.weight"))


@pytest.mark.parametrize(("name", "count"), [("norm", 2 * 8 + 1), ("conv_light", 9 * 64 + 3 * 8)])
def test_sizes(name: str, count: int) -> None:
    assert sum(p.numel() for p in build("cnn", name, 8, generator()).parameters()) == count


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
