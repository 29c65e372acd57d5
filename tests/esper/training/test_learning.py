"""A policy is learned alike on all ranks, whatever becomes of the runs that it is learned from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from esper.control.ppo import Op, PpoConfig, PpoMode
from esper.errors import AgreementDeadline, LifecycleDivergence, UnknownBlueprint
from esper.training import TrainConfig
from esper.training.learning import Learner
from esper.training.tasks import Batch, ShardedTask, TaskName
from tests.esper.ranks import run_ranks

EPOCHS = 5
LESSONS = 2


def config(mode: PpoMode = PpoMode.PARALLEL, *, seed: int = 0, **ppo: Any) -> TrainConfig:
    settings = {"mode": mode, "updates": LESSONS, "environments": 2, "tempos": [1], "hidden": 16, **ppo}
    return TrainConfig.from_dict(
        {
            "task": TaskName.DIGITS,
            "seed": seed,
            "epochs": EPOCHS,
            "batch_size": 256,
            "host": {"width": 2, "blocks": 2},
            "gates": {"permissive": True, "min_training_epochs": 1},
            "slot": {"tempo": 1},
            "ppo": {"passes": 2, **settings},
            "watchdog": {"on": False},
            "agreement": {"deadline": 20.0},
        }
    )


class Broken:
    """A task whose batches are not finite from an epoch on."""

    def __init__(self, task: ShardedTask, since: int, until: int) -> None:
        self._task, self._epochs = task, range(since, until)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        for inputs, classes in self._task.train_batches(epoch):
            yield (inputs * math.nan if epoch in self._epochs else inputs), classes


def told(learner: Learner) -> dict[str, Any]:
    weights = [one.flatten() for one in learner.learned.policy.parameters()]
    return {
        "weights": torch.cat(weights).tolist(),
        "statistics": [buffer.tolist() for buffer in learner.learned.statistics.buffers()],
        "lessons": [(one.accuracy, one.reward, one.episodes, one.update.samples) for one in learner.lessons],
    }


def learned(settings: TrainConfig, broken: range | None = None, rank: int = 0) -> dict[str, Any]:
    group = dist.group.WORLD if dist.is_initialized() else None
    seen: list[Any] = []
    with Learner(settings, group=group) as learner:
        if broken is not None and rank == 1:
            learner._task = Broken(learner._task, broken.start, broken.stop)  # type: ignore[assignment]
        learner.run(after_lesson=lambda learner: seen.append(told(learner)))
    return {"after": seen, **told(learner)}


def test_the_same_seed_learns_the_same_bits() -> None:
    one, other = learned(config()), learned(config())
    assert one == other
    assert one["after"][0]["weights"] != one["after"][1]["weights"]
    assert one["lessons"][0][2:] == (2, 2 * (EPOCHS - 1))
    assert learned(config(seed=1))["weights"] != one["weights"]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("mode", list(PpoMode))
def test_after_each_update_all_ranks_have_the_same_policy(mode: PpoMode, ranks: int) -> None:
    outcomes = run_ranks(lambda rank: learned(config(mode)), ranks, 60.0)
    assert [outcome.error for outcome in outcomes] == [None] * ranks
    first = outcomes[0].value
    assert all(outcome.value == first for outcome in outcomes)
    assert len(first["after"]) == LESSONS
    episodes = 2 * ranks if mode is PpoMode.PARALLEL else 2
    assert [lesson[2] for lesson in first["lessons"]] == [episodes] * LESSONS


@pytest.mark.parametrize("broken", [range(2, 3), range(1, 99)], ids=["a panic", "from the start"])
def test_what_becomes_of_one_ranks_runs_holds_no_other_up(broken: range) -> None:
    outcomes = run_ranks(lambda rank: learned(config(), broken, rank), 2, 60.0)
    assert [outcome.error for outcome in outcomes] == [None, None]
    first, second = (outcome.value for outcome in outcomes)
    assert first == second
    samples = first["lessons"][0][3]
    # The other's two episodes are whole; these lack the epochs in which nothing was decided.
    assert 2 * (EPOCHS - 1) < samples < 4 * (EPOCHS - 1)


def test_ranks_of_a_shared_run_take_the_same_actions_and_others_do_not() -> None:
    def choices(rank: int, mode: PpoMode) -> list[Any]:
        with Learner(config(mode), group=dist.group.WORLD) as learner:
            environments = [learner._environment(1, index) for index in range(2)]
            learner._play(environments, "here")
            found = [environment.episode().choices for environment in environments]
            for environment in environments:
                environment.close()
        return [list(map(tuple, one)) for one in found]

    for mode in PpoMode:
        outcomes = run_ranks(partial(choices, mode=mode), 2, 60.0)
        one, other = (outcome.value for outcome in outcomes)
        assert (one == other) == (mode is PpoMode.SHARED)
        assert any(choice[0] != Op.WAIT for episode in one for choice in episode)


def test_a_policy_that_differs_on_one_rank_is_found_after_the_update() -> None:
    def body(rank: int) -> None:
        with Learner(config(), group=dist.group.WORLD) as learner:
            learner.lesson()
            if rank == 1:
                with torch.no_grad():
                    next(learner.learned.policy.parameters()).view(-1)[0] += 1e-3
            learner.lesson()

    for outcome in run_ranks(body, 2, 60.0):
        assert isinstance(outcome.error, LifecycleDivergence)
        assert "the policy after update 2" in str(outcome.error)


@pytest.mark.parametrize("mode", list(PpoMode))
def test_one_rank_that_is_asked_to_stop_stops_all_after_the_lesson(mode: PpoMode) -> None:
    def body(rank: int) -> tuple[int, bool]:
        with Learner(config(mode, updates=50), group=dist.group.WORLD) as learner:
            if rank == 1:
                learner.stop()
            learner.run()
        return len(learner.lessons), learner.stopping

    assert [outcome.value for outcome in run_ranks(body, 2, 60.0)] == [(1, True)] * 2


def test_a_rank_that_does_not_come_is_named() -> None:
    def body(rank: int) -> None:
        settings = TrainConfig.from_dict({**config().to_dict(), "agreement": {"deadline": 1.0}})
        with Learner(settings, group=dist.group.WORLD) as learner:
            if rank == 1:
                time.sleep(4.0)  # which is what is wrong with it
            learner.lesson()

    outcomes = run_ranks(body, 2, 60.0)
    assert isinstance(outcomes[0].error, AgreementDeadline)
    assert tuple(outcomes[0].error.guilty) == (1,)


def test_a_blueprint_that_does_not_fit_the_host_is_refused_at_once() -> None:
    with pytest.raises(UnknownBlueprint):
        Learner(config(blueprints=["mlp"]))


@pytest.mark.parametrize("key", ["clip", "environments", "targets", "blueprints"])
def test_settings_that_mean_nothing_are_refused(key: str) -> None:
    wrong: dict[str, Any] = {"clip": 0.0, "environments": 0, "targets": (0.0,), "blueprints": ("a", "a")}
    with pytest.raises(Exception, match=rf"ppo\.{key}"):
        PpoConfig(**{key: wrong[key]})
