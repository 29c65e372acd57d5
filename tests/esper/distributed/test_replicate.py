"""A small model's gradients go in one round, and are what a larger model's are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.distributed.oneround import SHORT, mean_of_gradients
from esper.distributed.replicate import replicate
from pytest_esper_ddp.handle import DDP
from tests.esper.ranks import run_ranks

RANKS = 3


def _model(inputs: int, *, sparse: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, inputs, sparse=sparse), nn.Linear(inputs, 2))


def _batch(rank: int) -> Tensor:
    return torch.arange(rank, rank + 4) % 8


def _gradients(model: nn.Sequential, rank: int) -> list[Tensor]:
    model(_batch(rank)).square().sum().backward()
    return [each.grad.to_dense() for each in model.parameters() if each.grad is not None]


def _averaged(inputs: int, sparse: bool) -> dict[str, Any]:
    def body(rank: int) -> dict[str, Any]:
        model = _model(inputs, sparse=sparse)
        replica = replicate(model, dist.group.WORLD)  # type: ignore[arg-type]
        replica(_batch(rank)).square().sum().backward()
        hooks = [hook for hook, _ in replica._comm_hooks]
        gradients = [each.grad for each in model.parameters()]
        return {
            "in one round": hooks == [mean_of_gradients],
            "gradients": [each.to_dense().tolist() for each in gradients if each is not None],
        }

    outcomes = run_ranks(body, RANKS)
    assert [outcome.error for outcome in outcomes] == [None] * RANKS
    values = [outcome.value for outcome in outcomes]
    assert all(value == values[0] for value in values), "bit for bit the same on every rank"
    return dict(values[0])


@pytest.mark.parametrize(
    ("inputs", "sparse", "in_one_round"), [(4, False, True), (4, True, True), (SHORT // 8, False, False)]
)
def test_gradients_are_the_mean_over_ranks(inputs: int, sparse: bool, in_one_round: bool) -> None:
    found = _averaged(inputs, sparse)
    assert found["in one round"] is in_one_round
    alone = [_gradients(_model(inputs), rank) for rank in range(RANKS)]
    for mine, each in zip(found["gradients"], zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(torch.tensor(mine), sum(each) / RANKS)


@pytest.mark.ddp(3)
@pytest.mark.ddp_expect("drift", guilty=[1])
def test_replicas_that_differ_are_still_found(ddp: DDP) -> None:
    model = _model(4)
    replica = replicate(model, dist.group.WORLD)  # type: ignore[arg-type]
    if ddp.rank == 1:
        with torch.no_grad():
            model[1].bias.add_(1.0)  # type: ignore[operator]
    for _ in range(3):
        replica(_batch(ddp.rank)).square().sum().backward()
