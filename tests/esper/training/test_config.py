"""Configs from plain values."""

from __future__ import annotations

import json

import pytest

from esper.errors import ConfigError
from esper.training import TrainConfig
from tests.esper.training.short_config import SHORT, short_config


def test_a_config_survives_json_and_keeps_its_digest() -> None:
    config = short_config(seed=3)
    copy = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert copy == config
    assert copy.digest() == config.digest()
    assert copy.heuristic.blueprints == ("conv_light",)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"gates": {"min_contribution": 2.0}}, {"agreement": {"deadline": 5}}, {"run": "other"}],
    ids=str,
)
def test_every_setting_is_in_the_digest(change: dict[str, object]) -> None:
    assert TrainConfig.from_dict(change).digest() != TrainConfig().digest()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"epoch": 3},
            "epoch=3 is not accepted: must be left out (did you mean epochs?): known here are run, task",
        ),
        ({"epochs": 0}, "epochs=0 is not accepted: must be an int of at least 1"),
        ({"epochs": "3"}, "epochs='3' is not accepted: must be of type int"),
        ({"epochs": True}, "epochs=True is not accepted: must be of type int"),
        (
            {"gates": {"min_gain": 1}},
            "gates.min_gain=1 is not accepted: must be left out (did you mean min_gradient_ratio?): ",
        ),
        ({"gates": 3}, "gates=3 is not accepted: must be a mapping with keys of: permissive"),
        ({"gates": {"permissive": 1}}, "gates.permissive=1 is not accepted: must be of type bool"),
        ({"optimizer": {"name": "sdg"}}, "optimizer.name='sdg' is not accepted: must be one of sgd, adam"),
        (
            {"optimizer": {"lr": -1}},
            "optimizer.lr=-1.0 is not accepted: must be a finite number of at least 0",
        ),
        ({"optimizer": {"clip": 0}}, "optimizer.clip=0.0 is not accepted: must be a finite number above 0"),
        (
            {"heuristic": {"blueprints": "norm"}},
            "heuristic.blueprints='norm' is not accepted: must be a list",
        ),
        (
            {"heuristic": {"blueprints": [1]}},
            "heuristic.blueprints[0]=1 is not accepted: must be of type str",
        ),
        ({"slot": {"tempo": -1}}, "slot.tempo=-1 is not accepted"),
        (
            {"agreement": {"deadline": 0}},
            "agreement.deadline=0.0 is not accepted: must be a finite number of seconds",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_accepted_is_named_with_its_path(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig.from_dict({**SHORT, **values})
    assert said in str(raised.value)
