"""The formulas by which a seed comes in."""

import pytest
import torch

from esper.model import blend


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    host, seed = torch.randn(2, 64, 4, 5, 3, generator=generator) * 100
    return host, seed


def test_straight_through_has_the_hosts_value_and_the_seeds_gradient() -> None:
    host, seed = features()
    host.requires_grad_()
    seed.requires_grad_()
    weight = torch.randn(host.shape, generator=torch.Generator().manual_seed(1))
    mixed = blend.straight_through(host, seed)
    assert torch.equal(mixed, host)
    to_host, to_seed = torch.autograd.grad(mixed, (host, seed), weight)
    assert torch.equal(to_host, weight)
    assert torch.equal(to_seed, weight)


def test_add_is_the_host_at_0_and_the_seed_at_1() -> None:
    host, seed = features()
    assert torch.equal(blend.add(host, seed, torch.tensor(0.0)), host)
    assert torch.equal(blend.add(host, seed, torch.tensor(1.0)), seed)


def test_add_is_linear_in_between() -> None:
    host, seed = features()
    torch.testing.assert_close(blend.add(host, seed, torch.tensor(0.3)), 0.7 * host + 0.3 * seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_add_keeps_the_hosts_dtype(dtype: torch.dtype) -> None:
    host, seed = features()
    mixed = blend.add(host.to(dtype), seed, torch.tensor(0.5))
    assert mixed.dtype is dtype


def test_multiply_is_the_host_at_0_and_weighs_it_by_what_the_seed_changed() -> None:
    host, seed = features()
    read = host.detach()
    assert torch.equal(blend.multiply(host, seed, read, torch.tensor(0.0)), host)
    expected = host * (1 + 0.3 * torch.tanh(seed - read))
    torch.testing.assert_close(blend.multiply(host, seed, read, torch.tensor(0.3)), expected)
    assert torch.equal(blend.multiply(host, host, read, torch.tensor(1.0)), host)


def test_gated_is_the_host_at_0_and_mixes_each_sample_by_its_gate() -> None:
    host, seed = features()
    gate = torch.linspace(0, 1, host.shape[0]).view(-1, 1, 1, 1)
    assert torch.equal(blend.gated(host, seed, gate, torch.tensor(0.0)), host)
    mixed = blend.gated(host, seed, gate, torch.tensor(0.5))
    assert torch.equal(mixed[0], host[0])
    torch.testing.assert_close(mixed[-1], torch.lerp(host[-1], seed[-1], 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_multiply_and_gated_keep_the_hosts_dtype(dtype: torch.dtype) -> None:
    host, seed = features()
    alpha, gate = torch.tensor(0.5), torch.ones(host.shape[0], 1, 1, 1)
    assert blend.multiply(host.to(dtype), seed, host.to(dtype), alpha).dtype is dtype
    assert blend.gated(host.to(dtype), seed, gate, alpha).dtype is dtype
