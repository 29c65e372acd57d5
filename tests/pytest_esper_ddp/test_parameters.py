"""Whether two processes mean the same item by one node id."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_esper_ddp.wire.parameters import parameter_digest, stable_text
from tests.pytest_esper_ddp.plans import item


def test_an_item_without_parameters() -> None:
    assert parameter_digest(item()) == parameter_digest(item(params={})) == ""


def test_names_and_values_count_and_their_order_does_not() -> None:
    digest = parameter_digest(item(params={"a": 1, "b": "x"}))
    assert digest == parameter_digest(item(params={"b": "x", "a": 1}))
    others: tuple[dict[str, object], ...] = (
        {"a": 1},
        {"a": 2, "b": "x"},
        {"a": "1", "b": "x"},
        {"c": 1, "b": "x"},
    )
    for other in others:
        assert digest != parameter_digest(item(params=other))


def test_an_object_counts_by_its_type() -> None:
    assert stable_text(object()) == stable_text(object()) == "object"
    assert stable_text([object(), 1, {"k": (2.5, None)}]) == "[object, 1, {'k': [2.5, None]}]"


def test_an_unordered_set_has_one_text_in_every_process() -> None:
    code = (
        "from pytest_esper_ddp.wire.parameters import stable_text; "
        "print(stable_text({'one', 'two', 'three', ('four', frozenset({'five', 'six'}))}))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert texts == {"{'one', 'three', 'two', ['four', {'five', 'six'}]}\n"}


@pytest.mark.parametrize("value", [1, 1.5, "x", b"x", None, True, 2j])
def test_plain_values_are_told_apart(value: object) -> None:
    assert stable_text(value) == repr(value)
    assert stable_text(Path("x")) == type(Path("x")).__qualname__
