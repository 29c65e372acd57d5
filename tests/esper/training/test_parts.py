"""The parts of an epoch by themselves."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from esper.errors import DataError
from esper.training.batchnorm import average_statistics
from esper.training.config import OptimizerConfig, OptimizerName
from esper.training.optimizer import follow_parameters, make_optimizer
from esper.training.tasks import load_digits_task


def test_digits_are_real_sharded_and_as_many_as_announced() -> None:
    tasks = [load_digits_task(batch_size=32, seed=0, rank=rank, world_size=4) for rank in range(4)]
    batches = [list(task.train_batches(1)) for task in tasks]
    assert [len(each) for each in batches] == [task.announce(1) for task in tasks] == [12] * 4
    assert [len(classes) for _, classes in batches[0]] == [32] * 11 + [7]
    inputs, _ = batches[0][0]
    assert inputs.shape == (32, 1, 8, 8)
    assert 0.0 <= float(inputs.min()) < float(inputs.max()) <= 1.0
    assert sum(len(classes) for task in tasks for _, classes in task.test_batches()) == 360


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"scikit-learn is not installed; install pytest-esper-ddp\[train\]"):
        load_digits_task(batch_size=32, seed=0)


def test_batchnorm_statistics_are_averaged_in_one_tensor() -> None:
    first, second = nn.BatchNorm2d(2), nn.BatchNorm1d(3)
    model = nn.Sequential(first, second, nn.BatchNorm1d(3, track_running_stats=False))
    seen: list[Tensor] = []

    def mean_(values: Tensor) -> None:
        seen.append(values.clone())
        values.add_(1.0)

    average_statistics(model, mean_)
    assert [tuple(values.shape) for values in seen] == [(10,)]
    assert first.running_mean is not None
    assert first.running_mean.tolist() == [1.0, 1.0]
    assert second.running_var is not None
    assert second.running_var.tolist() == [2.0, 2.0, 2.0]
    assert first.num_batches_tracked is not None
    assert int(first.num_batches_tracked) == 0
    average_statistics(nn.Linear(1, 1), lambda values: pytest.fail("there is nothing to average"))


@pytest.mark.parametrize("name", list(OptimizerName))
def test_the_optimiser_keeps_the_state_of_those_that_stay(name: OptimizerName) -> None:
    stays, goes, comes = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = make_optimizer([goes, stays], OptimizerConfig(name=name))
    for parameter in (goes, stays):
        parameter.grad = torch.ones(2)
    optimizer.step()
    kept = optimizer.state[stays]
    follow_parameters(optimizer, [comes, stays])
    assert optimizer.state[stays] is kept
    assert goes not in optimizer.state
    comes.grad = torch.ones(2)
    before = goes.clone()
    optimizer.step()
    assert not torch.equal(comes, torch.ones(2))
    assert torch.equal(goes, before)
