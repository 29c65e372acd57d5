"""Small parts that the pure tests build their cases from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from esper.lockstep.report.diagnosis import Diagnosis, GuiltyAt, Waiting
from pytest_esper_ddp.options import Settings
from pytest_esper_ddp.scenario import Scenario
from pytest_esper_ddp.wire.messages import Failure

SETTINGS = Settings(world_sizes=(2,), backend="gloo", timeout=30.0, isolation="pool", start="fork", seed=0)
SCENARIO = Scenario(
    world_size=4,
    backend="gloo",
    timeout=30.0,
    isolation="pool",
    init=True,
    lockstep="enforce",
    patience=2.0,
)


class Item:
    """As much of an item as its markers need; marks are in the order in which decorators are applied."""

    nodeid = "test_file.py::test_it"
    location = ("test_file.py", 0, "test_it")

    def __init__(self, *marks: pytest.MarkDecorator, params: Mapping[str, object] | None = None) -> None:
        self.marks = [mark.mark for mark in marks]
        self.keywords: dict[str, object] = {}
        if params is not None:
            self.callspec = SimpleNamespace(params=params)

    def iter_markers(self, name: str) -> Iterator[pytest.Mark]:
        return (mark for mark in self.marks if mark.name == name)

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next(self.iter_markers(name), None)


def item(*marks: pytest.MarkDecorator, params: Mapping[str, object] | None = None) -> pytest.Item:
    return cast(pytest.Item, Item(*marks, params=params))


def failure(**given: Any) -> Failure:
    fields: dict[str, Any] = {
        "phase": "call",
        "at": 10.0,
        "type": "ValueError",
        "text": "ValueError: bad",
        "victim": False,
        "bases": ("builtins.ValueError", "builtins.Exception", "builtins.BaseException", "builtins.object"),
    }
    return Failure(**{**fields, **given})


def diagnosis(
    kind: str = "missing", guilty: tuple[int, ...] = (2,), op: str = "all_reduce", **given: Any
) -> Diagnosis:
    fields: dict[str, Any] = {
        "group": "default",
        "sequence": 1,
        "waiting": Waiting(ranks=(0, 1, 3), op=op, tag="gate"),
        "guilty_at": {rank: GuiltyAt("running", op="barrier", tag="loss") for rank in guilty},
        "seconds": 0.01,
        "message": "rank 2 never entered all_reduce #1",
    }
    return Diagnosis(kind=kind, guilty=guilty, **{**fields, **given})
