"""A run in one call is the run that its parts would have made."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from esper.control import HeuristicController
from esper.errors import ConfigError
from esper.training import AfterEpoch, TrainConfig, Trainer, build_model, build_task, train_heuristic
from pytest_esper_ddp.handle import DDP
from tests.esper.training.short_config import short_config


def _by_hand(config: TrainConfig) -> Trainer:
    controller = HeuristicController(config.heuristic, config.gates)
    return Trainer(build_model(config), build_task(config), controller, config)


@pytest.mark.parametrize("controller", ["own", "none"])
def test_it_is_the_run_of_its_parts_whatever_controller_is_named(controller: str) -> None:
    config = short_config(task="digits", controller=controller, epochs=5)
    epochs: list[int] = []
    note = AfterEpoch(lambda _, result: epochs.append(result.epoch))
    model, history = train_heuristic(config, callbacks=[note])
    by_hand = _by_hand(config)
    assert history.same_as(by_hand.run())
    assert model.fingerprint() == by_hand.model.fingerprint()
    assert any(result.decision.actions for result in history.epochs)
    assert epochs == [1, 2, 3, 4, 5]


@pytest.mark.ddp(2)
def test_on_ranks_each_has_its_share_and_all_have_the_model(ddp: DDP) -> None:
    model, history = train_heuristic(short_config(task="digits", epochs=2), group=dist.group.WORLD)
    ddp.assert_same(dict(model.state_dict()))
    assert len(history.epochs) == 2
    alone = train_heuristic(short_config(task="digits", epochs=2))
    assert not history.same_as(alone.history)  # which takes twice as many steps


def test_a_task_of_ones_own_is_a_trainers() -> None:
    with pytest.raises(ConfigError, match=r"^task='own'.*given to the trainer"):
        train_heuristic(short_config())
