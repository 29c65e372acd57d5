"""What a module is made of is what torch says it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import nn

from esper.modules import modules_of, named_tensors, parameters_of


def tied() -> nn.Module:
    """A part under two names, a parameter in two parts, and what is registered and is not there."""
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    outer = nn.Linear(2, 2)
    outer.register_parameter("weight", inner.get_parameter("0.weight"))
    module = nn.ModuleDict({"a": inner, "b": inner, "c": nn.Conv2d(1, 1, 1, bias=False), "d": outer})
    module.register_buffer("none", None)
    module.register_module("nothing", None)
    return module


def nested() -> nn.Module:
    """Parts in parts, of which each has something of its own."""
    return nn.TransformerEncoderLayer(4, 2, 8)


@pytest.mark.parametrize("make", [tied, nested])
def test_parts_come_as_torch_lists_them(make: Callable[[], nn.Module]) -> None:
    module = make()
    assert list(map(id, modules_of(module))) == list(map(id, module.modules()))
    assert list(map(id, parameters_of(module))) == list(map(id, module.parameters()))
    parameters, buffers = named_tensors(module)
    for mine, theirs in (
        (parameters, module.named_parameters(remove_duplicate=False)),
        (buffers, module.named_buffers(remove_duplicate=False)),
    ):
        assert [(name, id(one)) for name, one in mine] == [(name, id(one)) for name, one in theirs]


def test_a_copy_has_its_own() -> None:
    module = nested()
    assert not {*map(id, parameters_of(module))} & {*map(id, parameters_of(copy.deepcopy(module)))}
