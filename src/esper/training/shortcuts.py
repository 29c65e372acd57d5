"""A whole run in one call, for who has no more to say than its config does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from esper.control import ControllerName
from esper.control.ppo.controller import Learned
from esper.distributed.agreement import Agreement
from esper.model import GrownModel
from esper.training.build import build_controller, build_model, build_task
from esper.training.callbacks import Callback
from esper.training.config import TrainConfig
from esper.training.environments import fresh_policy
from esper.training.history import History
from esper.training.learning import Learner
from esper.training.policies import load_policy
from esper.training.trainer import Trainer


class Trained(NamedTuple):
    """What a run leaves: the model as it has grown, and how it came to that."""

    model: GrownModel
    history: History


def train_heuristic(
    config: TrainConfig,
    *,
    group: dist.ProcessGroup | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
    callbacks: Iterable[Callback] = (),
) -> Trained:
    """Collective: every rank, same order. Grow the config's host on its task by the heuristic controller,
    whatever controller it names; on one process, or on the ranks of `group`.

    Raises as `build_task` and `Trainer.run`.
    """
    heuristic = replace(config, controller=ControllerName.HEURISTIC)
    return _train(heuristic, group=group, device=device, data_dir=data_dir, callbacks=callbacks)


def train_ppo(
    config: TrainConfig,
    *,
    policy: Path | None = None,
    group: dist.ProcessGroup | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
    callbacks: Iterable[Callback] = (),
) -> Trained:
    """Collective: every rank, same order. As `train_heuristic`, but by a policy: the one in the file `policy`
    (see `save_policy`), or one that is learned first, as the config's `ppo` says.

    Raises as `load_policy` and `Learner.lesson`, too.
    """
    named = replace(config, controller=ControllerName.PPO)
    if policy is None:
        with Learner(named, group=group, device=device, data_dir=data_dir) as learner:
            learned = learner.run()
    else:
        learned = fresh_policy(named)
        with Agreement(group, named.agreement) as agreement:
            load_policy(policy, learned, agreement)
    return _train(named, learned, group=group, device=device, data_dir=data_dir, callbacks=callbacks)


def _train(
    config: TrainConfig,
    learned: Learned | None = None,
    *,
    group: dist.ProcessGroup | None,
    device: str,
    data_dir: Path | None,
    callbacks: Iterable[Callback],
) -> Trained:
    rank, world_size = (0, 1) if group is None else (group.rank(), group.size())
    task = build_task(config, data_dir=data_dir, rank=rank, world_size=world_size)
    model, controller = build_model(config).to(device), build_controller(config, learned)
    with Trainer(model, task, controller, config, group=group, callbacks=callbacks) as trainer:
        return Trained(model, trainer.run())
