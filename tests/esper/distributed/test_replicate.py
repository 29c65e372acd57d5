"""A small model's gradients go in one round, and are what a larger model's are."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.distributed.oneround import SHORT, mean_of_gradients
from esper.distributed.replicate import Replication, replicate
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


@pytest.mark.parametrize(
    ("inputs", "sparse", "dtype", "goes"),
    [
        (4, False, torch.float32, True),
        (4, True, torch.float32, False),  # in two buckets, of which the first comes before the end
        (4, False, torch.float64, False),
        (SHORT // 8, False, torch.float32, False),
    ],
)
def test_more_goes_along_once_with_gradients_in_a_single_bucket(
    inputs: int, sparse: bool, dtype: torch.dtype, goes: bool
) -> None:
    def body(rank: int) -> dict[str, Any]:
        model = _model(inputs, sparse=sparse)
        replica = replicate(model, dist.group.WORLD)  # type: ignore[arg-type]
        more = [torch.full((2,), float(rank), dtype=dtype), torch.full((1,), 10.0 * rank, dtype=dtype)]
        found: dict[str, Any] = {"took along": [], "gradients": []}
        for step in range(3):
            model.zero_grad(set_to_none=True)
            if step == 1:
                replica.take_along(more)
            replica(_batch(rank)).square().sum().backward()
            gradients = [each.grad for each in model.parameters()]
            found["gradients"].append([each.to_dense().tolist() for each in gradients if each is not None])
            found["took along"].append(replica.took_along)
        return {**found, "more": [each.tolist() for each in more]}

    outcomes = run_ranks(body, RANKS)
    assert [outcome.error for outcome in outcomes] == [None] * RANKS
    for rank, outcome in enumerate(outcomes):
        assert outcome.value["more"] == ([[1.0, 1.0], [10.0]] if goes else [[rank, rank], [10 * rank]])
        assert outcome.value["took along"] == [False, goes, False]
        first, *others = outcome.value["gradients"]
        assert inputs > 4 or others == [first] * 2  # of a large one they depend on its buckets


def test_a_replica_serves_for_as_long_as_a_new_one_would_be_the_same() -> None:
    def numbers(rank: int) -> list[int]:
        replication = Replication(dist.group.WORLD)  # type: ignore[arg-type]
        small, large = _model(4), _model(SHORT // 8)
        found = []

        def epoch(model: nn.Module, *, finished: bool = True) -> None:
            replica = replication.of(model)
            replica(_batch(rank)).square().sum().backward()
            found.append(replica.number)
            if finished:
                replication.keep(replica)

        epoch(small)
        epoch(small)  # 1 still
        epoch(small, finished=False)
        epoch(small)  # 2, since a step of the first may be under way
        small[1].bias.requires_grad_(False)
        epoch(small)  # 3
        small.double()
        epoch(small)  # 4
        epoch(large)  # 5, another model
        epoch(large)  # 6: what its ranks add up depends on its buckets
        replication.forget()
        epoch(small)  # 7
        return found

    for outcome in run_ranks(numbers, 2):
        assert outcome.error is None
        assert outcome.value == [1, 1, 1, 2, 3, 4, 5, 6, 7]


def test_gradients_are_the_same_bits_whichever_replica_adds_them_up() -> None:
    def trained(rank: int, *, lasting: bool) -> list[Any]:
        model, replication = _model(4), Replication(dist.group.WORLD)  # type: ignore[arg-type]
        for step in range(6):
            replica = replication.of(model)
            replica(_batch(rank + step)).square().sum().backward()
            if lasting:
                replication.keep(replica)
        return [each.grad.tolist() for each in model.parameters() if each.grad is not None]

    found = [run_ranks(partial(trained, lasting=lasting), 2) for lasting in (True, False)]
    assert [outcome.error for outcomes in found for outcome in outcomes] == [None] * 4
    one, *others = [outcome.value for outcomes in found for outcome in outcomes]
    assert others == [one] * 3


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
