"""A run's parts are those that its config names, and what does not go together is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from esper.control import ControllerName, HeuristicController, IdleController, RandomController
from esper.errors import ConfigError, DataError
from esper.model import CnnHost, GptHost
from esper.training import TrainConfig, build_controller, build_model, build_task, preset
from esper.training.tasks import TaskName


def config(task: str, **changes: Any) -> TrainConfig:
    return TrainConfig.from_dict({**preset(TaskName(task)), **changes})


@pytest.mark.parametrize(("task", "host"), [("digits", CnnHost), ("pydoc", GptHost)])
def test_a_named_task_and_its_host_go_together(task: str, host: type) -> None:
    settings = config(task)
    model = build_model(settings)
    assert isinstance(model.host, host)
    inputs, classes = next(build_task(settings).train_batches(1))
    logits = model(inputs)
    assert logits.shape[:-1] == classes.shape
    assert logits.shape[-1] > int(classes.max())


def test_each_preset_is_a_config() -> None:
    for task in TaskName:
        assert config(task).task is task


def test_the_same_seed_builds_the_same_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other = (build_model(config("pydoc")) for _ in range(2))
    assert one.fingerprint() == other.fingerprint() != build_model(config("pydoc", seed=1)).fingerprint()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("heuristic", HeuristicController), ("random", RandomController), ("none", IdleController)],
)
def test_a_controller_by_name(name: str, kind: type) -> None:
    assert isinstance(build_controller(config("digits", controller=name)), kind)


def test_what_is_the_callers_own_is_not_built() -> None:
    own = TrainConfig()
    assert (own.task, own.controller) == (TaskName.OWN, ControllerName.OWN)
    with pytest.raises(ConfigError, match=r"^controller='own'.*by name"):
        build_controller(own)
    with pytest.raises(ConfigError, match=r"^task='own'.*by name"):
        build_task(own)


def test_a_task_refuses_the_host_of_another() -> None:
    with pytest.raises(ConfigError, match=r"^host.name='cnn'.*must be gpt for task pydoc"):
        build_task(config("pydoc", host={"name": "cnn"}))
    with pytest.raises(ConfigError, match=r"^host.name='gpt'.*must be cnn for task digits"):
        build_task(config("digits", host={"name": "gpt"}))


def test_data_that_does_not_come_along_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data-dir DIR"):
        build_task(config("cifar10"))
    with pytest.raises(DataError, match=str(tmp_path)):
        build_task(config("cifar10"), data_dir=tmp_path)
