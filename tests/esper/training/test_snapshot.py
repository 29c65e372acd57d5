"""A snapshot taken again and again is what a copy made anew would be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from esper.training.snapshot import Snapshot, capture
from tests.esper.training.lives import Script, eventful, tiny_trainer


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """All that is in nested dicts and lists, by path; tensors by type and values."""
    if isinstance(value, dict):
        parts = [leaves(each, f"{path}.{key}") for key, each in value.items()]
    elif isinstance(value, list):
        parts = [leaves(each, f"{path}[{index}]") for index, each in enumerate(value)]
    else:
        tensor = isinstance(value, torch.Tensor)
        return {path: (value.dtype, value.tolist()) if tensor else value}
    return {key: each for part in parts for key, each in part.items()}


def saved(snapshot: Snapshot) -> dict[str, Any]:
    return leaves(snapshot.saved())


def places(snapshot: Snapshot) -> list[int]:
    return [copy.data_ptr() for copy in snapshot._copies]


def test_over_a_whole_life_it_is_what_is_there_and_stays_so() -> None:
    """Through births, prunes, frozen seeds and fossils, and whatever is trained after it was taken."""
    snapshot = Snapshot()
    again = []

    trainer = tiny_trainer(Script(eventful()), epochs=15)
    for _ in trainer.epochs():
        before = places(snapshot)
        snapshot.take(trainer.model, trainer.optimizer)
        again.append(places(snapshot) == before)
        now = leaves(capture(trainer.model, trainer.optimizer))
        assert saved(snapshot) == now
        with torch.no_grad():
            trainer.model.host.get_parameter("head.bias").add_(1.0)
        assert saved(snapshot) == now
    assert set(again) == {True, False}  # into the same copies while nothing came or went


class Counting(nn.Module):
    """A part with a state that is no tensor."""

    count = 0

    def get_extra_state(self) -> int:
        return self.count

    def set_extra_state(self, state: int) -> None:
        self.count = state


@pytest.mark.parametrize("change", ["extra state", "learning rate", "tensor of a rate", "type"])
def test_what_changes_without_a_tensor_becoming_another_is_in_it(change: str) -> None:
    trainer = tiny_trainer(Script({}))
    model, optimizer = trainer.model, trainer.optimizer
    rate = torch.tensor(0.1)
    if change == "extra state":
        model.host.add_module("counting", Counting())
    elif change == "tensor of a rate":
        optimizer.param_groups[0]["lr"] = rate
    snapshot = Snapshot()
    snapshot.take(model, optimizer)
    before = leaves(capture(model, optimizer))
    if change == "extra state":
        model.host.get_submodule("counting").count = 7  # type: ignore[assignment]
    elif change == "learning rate":
        optimizer.param_groups[0]["lr"] = 0.25
    elif change == "tensor of a rate":
        rate.fill_(0.5)
    else:
        model.host.get_submodule("head").double()  # the same parameters, and no buffers
        with torch.no_grad():
            model.host.get_parameter("head.bias").add_(1e-12)
    now = leaves(capture(model, optimizer))
    assert now != before
    assert saved(snapshot) == before
    snapshot.take(model, optimizer)
    assert saved(snapshot) == now
    rate.fill_(0.75)
    assert saved(snapshot) == now
