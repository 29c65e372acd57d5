"""A policy on disk: what was learned, whole or refused, and gone on with as if it had not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from esper.control.ppo.controller import Learned
from esper.errors import CheckpointRefused, ConfigError, LifecycleDivergence
from esper.training import (
    Learner,
    TrainConfig,
    build_controller,
    load_policy,
    resume_policy,
    save_policy,
    train_ppo,
)
from esper.training.checkpoint import seal
from tests.esper.ranks import run_ranks
from tests.esper.training.test_learning import config, told


def fresh(settings: TrainConfig) -> Learned:
    with Learner(settings) as learner:
        return learner.learned


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.checkpoint"
    with Learner(config()) as learner:
        learner.lesson()
        save_policy(learner, path)
    return path


def test_going_on_learns_the_same_bits_as_never_having_stopped(file: Path) -> None:
    with Learner(config()) as whole:
        whole.run()
    with Learner(config()) as learner:
        resume_policy(file, learner)
        assert len(learner.lessons) == 1
        learner.run()
    assert told(whole) == told(learner)


def test_a_loaded_policy_is_the_one_that_was_saved(file: Path) -> None:
    one, other = fresh(config(seed=7)), fresh(config())
    load_policy(file, one)
    load_policy(file, other)
    for name, values in one.policy.state_dict().items():
        assert torch.equal(values, other.policy.state_dict()[name])
    assert float(one.statistics.count) > 0.0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"hidden": 8}, "hidden=16"),
        ({"blueprints": ["norm"]}, "blueprints="),
        ({"tempos": [2]}, r"tempos=\[1\]"),
    ],
)
def test_a_policy_for_something_else_is_refused_by_name(
    file: Path, changed: dict[str, Any], named: str
) -> None:
    learned = fresh(config(**changed))
    before = {name: values.clone() for name, values in learned.policy.state_dict().items()}
    with pytest.raises(CheckpointRefused, match=named):
        load_policy(file, learned)
    assert all(torch.equal(values, before[name]) for name, values in learned.policy.state_dict().items())


@pytest.mark.parametrize("kept", [0, 10, 100, -1])
def test_a_file_that_was_cut_off_is_refused(file: Path, tmp_path: Path, kept: int) -> None:
    part = tmp_path / "part"
    part.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointRefused, match=str(part)):
        load_policy(part, fresh(config()))


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with pytest.raises(CheckpointRefused, match="it cannot be read"):
        load_policy(other, fresh(config()))
    other.write_bytes(seal({"host": 1}))
    with pytest.raises(CheckpointRefused, match="it holds something else"):
        load_policy(other, fresh(config()))


@pytest.mark.parametrize(
    ("broken", "named"), [(None, "it cannot be read"), (b"no", "it does not begin as one")]
)
def test_a_file_that_one_rank_cannot_use_is_refused_by_all_at_once(
    broken: bytes | None, named: str, file: Path, tmp_path: Path
) -> None:
    if broken is not None:
        (tmp_path / "rank1").write_bytes(broken)

    def body(rank: int) -> None:
        path = file if rank == 0 else tmp_path / "rank1"
        train_ppo(config(), policy=path, group=dist.group.WORLD)

    first, second = run_ranks(body, 2, 60.0)
    assert isinstance(first.error, CheckpointRefused)
    assert isinstance(second.error, CheckpointRefused)
    assert f"on rank 1 {named}" in str(first.error)
    assert str(second.error).startswith(f"checkpoint {tmp_path / 'rank1'} is refused: {named}")


def test_ranks_that_would_go_by_different_policies_learn_and_train_nothing(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    with Learner(config(seed=9)) as learner:
        save_policy(learner, other)

    def body(rank: int) -> None:
        with Learner(config(), group=dist.group.WORLD) as learner:
            resume_policy(other if rank else file, learner)

    for outcome in run_ranks(body, 2, 60.0):
        assert isinstance(outcome.error, LifecycleDivergence)
        assert "the policy in" in str(outcome.error)


def test_a_run_in_one_call_goes_by_the_file_or_learns_first(file: Path) -> None:
    model, history = train_ppo(config(), policy=file)
    again = train_ppo(config(), policy=file)
    assert history.same_as(again.history)
    assert model.fingerprint() == again.model.fingerprint()
    assert len(train_ppo(config(updates=1)).history.epochs) == config().epochs


def test_a_controller_without_a_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="controller='ppo'"):
        build_controller(TrainConfig.from_dict({"controller": "ppo"}))
