"""What a fingerprint tells apart."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from esper.model import fingerprint


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4, bias=False))


def _flip_a_bit(m: nn.Module) -> None:
    m.get_parameter("0.weight").data.view(-1).view(torch.int32)[3] ^= 1


def _swap_two_elements(m: nn.Module) -> None:
    flat = m.get_parameter("0.weight").data.view(-1)
    flat[:2] = flat[:2].flip(0)


def _zero_where_there_were_ones(m: nn.Module) -> None:
    m.get_parameter("1.weight").data.zero_()


def _move_statistics(m: nn.Module) -> None:
    m.get_buffer("1.running_mean")[0] += 1e-7


def _transpose(m: nn.Module) -> None:
    m.get_parameter("2.weight").data = torch.zeros(2, 8)


def _freeze(m: nn.Module) -> None:
    m.get_parameter("2.weight").requires_grad_(False)


def _negative_zero(m: nn.Module) -> None:
    m.get_buffer("1.running_mean").neg_()


CHANGES: list[Callable[[nn.Module], None]] = [
    _flip_a_bit,
    _swap_two_elements,
    _zero_where_there_were_ones,
    _move_statistics,
    _transpose,
    _freeze,
    _negative_zero,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_change_shows(change: Callable[[nn.Module], None]) -> None:
    one = module()
    nn.init.zeros_(one.get_parameter("2.weight"))
    other = copy.deepcopy(one)
    assert fingerprint(one) == fingerprint(other)
    change(other)
    assert fingerprint(one) != fingerprint(other)


def test_names_and_order_show() -> None:
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight = one.weight
    forms = [
        nn.ModuleDict({"a": one}),
        nn.ModuleDict({"b": one}),
        nn.ModuleDict({"a": one, "b": nn.BatchNorm1d(3)}),
        nn.ModuleDict({"b": nn.BatchNorm1d(3), "a": one}),
    ]
    assert len({fingerprint(form) for form in forms}) == 4
    assert all(0 <= fingerprint(form) < 2**63 for form in forms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_any_dtype_and_a_transposed_tensor(dtype: torch.dtype) -> None:
    holder = nn.Module()
    holder.register_buffer("it", torch.ones(2, 3, dtype=dtype).t())
    holder.register_buffer("empty", torch.zeros(0, dtype=dtype))
    assert fingerprint(holder) == fingerprint(copy.deepcopy(holder))


def test_the_number_is_a_format() -> None:
    # Ranks of one job run the same code, but a checkpoint carries it on.
    holder = nn.Module()
    holder.register_buffer("it", torch.arange(6, dtype=torch.float32).view(2, 3))
    assert fingerprint(holder) == 5553708375119492459
