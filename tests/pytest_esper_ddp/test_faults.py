"""The catalogue, and faults that are applied to code which runs here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pytest_esper_ddp.faults import call, collective, data, lifecycle, process
from pytest_esper_ddp.faults.catalogue import CATALOGUE
from pytest_esper_ddp.faults.patching import wrap, wrap_target
from pytest_esper_ddp.markers import AT_CALLS
from pytest_esper_ddp.scenario import Fault


class Thing:
    """What the tests patch."""

    def method(self) -> str:
        return "method"

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    class Inner:
        def method(self) -> str:
            return "inner"


class Child(Thing):
    """Inherits what the tests patch."""


def function() -> str:
    return "function"


CONSTANT = "constant"


def loud(original: Callable[..., str]) -> Callable[..., str]:
    return lambda *args: original(*args).upper()


def test_every_kind_has_who_applies_it() -> None:
    for kind, spec in CATALOGUE.items():
        module = importlib.import_module(f"pytest_esper_ddp.faults.{spec.family}")
        assert hasattr(module, "at_collectives" if spec.family in AT_CALLS else "arm"), kind
        assert set(spec.required) <= {*spec.arguments, *spec.coordinates}, kind
    applied = {
        "process": set(process.KINDS),
        "collective": {*collective.KINDS, "swap"},
        "call": set(call.KINDS),
        "data": set(data.KINDS),
        "lifecycle": set(lifecycle.KINDS),
    }
    declared: dict[str, set[str]] = {}
    for kind, spec in CATALOGUE.items():
        declared.setdefault(spec.family, set()).add(kind)
    assert applied == declared


def test_a_patch_ends_and_leaves_no_trace() -> None:
    before = dict(vars(Thing))
    undo = wrap(Thing, "method", loud)
    assert Thing().method() == "METHOD"
    undo()
    assert dict(vars(Thing)) == before


@pytest.mark.parametrize(
    ("path", "call", "before"),
    [
        ("function", "function", "function"),
        ("Thing.method", "Thing().method", "method"),
        ("Thing.Inner.method", "Thing.Inner().method", "inner"),
        ("Thing.static", "Thing.static", "static"),
        ("Thing.static", "Thing().static", "static"),
        ("Thing.of_class", "Thing.of_class", "Thing"),
        ("Thing.of_class", "Child.of_class", "Child"),
        ("Child.method", "Child().method", "method"),
    ],
)
def test_a_target_by_its_name(path: str, call: str, before: str) -> None:
    kept = dict(vars(Thing)), dict(vars(Child))
    undo = wrap_target(f"{__name__}:{path}", loud)
    try:
        assert eval(call)() == before.upper()
    finally:
        undo()
    assert eval(call)() == before
    assert (dict(vars(Thing)), dict(vars(Child))) == kept


def test_the_parent_of_a_patched_child_is_left_alone() -> None:
    undo = wrap_target(f"{__name__}:Child.method", loud)
    try:
        assert Thing().method() == "method"
    finally:
        undo()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_package.x:f", "no module 'no_such_package.x' (No module named 'no_such_package')"),
        (f"{__name__}:nothing", f"'{__name__}' has no 'nothing'"),
        (f"{__name__}:Thing.nothing", "'Thing' has no 'nothing'"),
        (f"{__name__}:Nothing.method", f"'{__name__}' has no 'Nothing'"),
        (f"{__name__}:CONSTANT", "'CONSTANT' can't be called"),
    ],
)
def test_a_target_that_does_not_exist_is_named(target: str, said: str) -> None:
    with pytest.raises(LookupError) as caught:
        wrap_target(target, loud)
    assert caught.value.args == (f"target {target!r}: {said}",)


class Passes:
    """Makes an iterator a pass, as a loader does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.batches))


def uneven(
    epoch: int | None = None, target: str | None = f"{__name__}:Passes.__iter__"
) -> tuple[Any, list[int]]:
    fired: list[int] = []
    fault = Fault(kind="uneven_loader", rank=1, epoch=epoch, target=target)
    return data.arm(fault, lambda: fired.append(1)), fired


def test_the_first_pass_loses_its_last_batch() -> None:
    undo, fired = uneven()
    try:
        loader = Passes(3)
        assert [list(loader) for _ in range(3)] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    finally:
        undo()
    assert fired == [1]
    assert list(Passes(3)) == [0, 1, 2]


def test_a_later_pass_and_a_short_one() -> None:
    undo, fired = uneven(epoch=2)
    try:
        assert [list(Passes(1)) for _ in range(3)] == [[0], [], [0]]
    finally:
        undo()
    assert fired == [1]


def test_it_fires_where_the_others_take_the_batch_that_is_lost() -> None:
    undo, fired = uneven()
    try:
        batches = iter(Passes(2))
        assert next(batches) == 0
        assert fired == []
        assert next(batches, None) is None
        assert fired == [1]
    finally:
        undo()


def test_without_a_target_it_is_the_data_loader() -> None:
    loader: DataLoader[Any] = DataLoader(torch.utils.data.TensorDataset(torch.arange(4.0)), batch_size=2)
    undo, fired = uneven(target=None)
    try:
        assert [len(list(loader)) for _ in range(2)] == [1, 2]
    finally:
        undo()
    assert fired == [1]
    assert len(list(loader)) == 2
