"""Ranks with different numbers of batches, and with numbers that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.distributed.loaders import Shadow
from esper.errors import CollectiveInLoader, LoaderMismatch
from esper.lifecycle import MetricSums
from esper.training import History, Trainer
from esper.training.epoch import train_on
from esper.training.tasks import Batch, ShardedTask
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import Uneven, alike, miniature, miniature_task


def _run(ddp: DDP, lengths: dict[int, int | None], policy: str) -> tuple[Trainer, History]:
    """A run of two epochs on ranks of which the last has other lengths."""
    last = ddp.rank == ddp.world_size - 1
    task = Uneven(miniature_task(ddp.rank, ddp.world_size), lengths if last else _known(lengths))
    with miniature(ddp.rank, ddp.world_size, task=task, epochs=2, loaders=policy) as trainer:
        history = trainer.run()
        ddp.assert_same(alike(trainer))
    return trainer, history


def _known(lengths: dict[int, int | None]) -> dict[int, int | None]:
    return {epoch: -2 for epoch, length in lengths.items() if length is not None and length < 0}


def _steps(trainer: Trainer) -> int:
    steps: int = trainer.state_dict()["steps"]
    return steps


@pytest.mark.parametrize(
    ("policy", "length", "steps"),
    [
        ("truncate", 1, 2 + 1),
        ("truncate", 3, 2 + 2),
        ("truncate", 0, 2 + 0),
        ("join", 1, 2 + 2),
        ("join", 4, 2 + 4),
        # Of lengths that nobody knows.
        ("truncate", -1, 2 + 1),
        ("truncate", -3, 2 + 2),
        ("join", -1, 2 + 2),
        ("join", -4, 2 + 4),
        ("error", -2, 2 + 2),
    ],
)
@pytest.mark.ddp(4)
def test_all_ranks_make_as_many_steps(ddp: DDP, policy: str, length: int, steps: int) -> None:
    trainer, _ = _run(ddp, {2: length}, policy)
    assert _steps(trainer) == steps


@pytest.mark.ddp(4)
def test_by_default_different_lengths_are_named_before_a_step(ddp: DDP) -> None:
    with pytest.raises(LoaderMismatch) as raised:
        _run(ddp, {2: 3}, "error")
    assert raised.value.guilty == (3,)
    assert str(raised.value) == (
        "ranks announced different numbers of batches for epoch 2 "
        "(rank 0: 2, rank 1: 2, rank 2: 2, rank 3: 3): "
        "all must have as many, or loaders be truncate or join"
    )


@pytest.mark.ddp(4)
def test_a_loader_without_a_length_that_ends_early_is_named_in_that_step(ddp: DDP) -> None:
    with pytest.raises(LoaderMismatch) as raised:
        _run(ddp, {2: -1}, "error")
    assert raised.value.guilty == (3,)
    assert str(raised.value).startswith("rank 3 had no batch for step 2 of epoch 2, the others had one")


@pytest.mark.parametrize("length", [0])
@pytest.mark.ddp(2)
def test_a_rank_without_any_batch_cannot_join(ddp: DDP, length: int) -> None:
    with pytest.raises(LoaderMismatch, match="to join the others each must have at least one"):
        _run(ddp, {2: length}, "join")


@dataclass(frozen=True)
class Communicating:
    """A loader that asks the other ranks for each batch."""

    inner: ShardedTask

    def announce(self, epoch: int) -> int:
        return self.inner.announce(epoch)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        for batch in self.inner.train_batches(epoch):
            dist.all_reduce(torch.ones(1))
            yield batch

    def test_batches(self) -> Iterator[Batch]:
        return self.inner.test_batches()


@pytest.mark.ddp(2)
def test_a_loader_that_communicates_is_refused_by_join_and_by_nothing_else(ddp: DDP) -> None:
    task = Communicating(miniature_task(ddp.rank, 2))
    for policy in ("error", "truncate"):
        with miniature(ddp.rank, 2, task=task, epochs=1, loaders=policy) as trainer:
            trainer.run()
    with (
        miniature(ddp.rank, 2, task=task, epochs=1, loaders="join") as trainer,
        pytest.raises(CollectiveInLoader, match="the batch of step 1 of epoch 1 issued 1 collectives"),
    ):
        trainer.run()


@pytest.mark.ddp(2)
def test_collectives_inside_the_model_are_shadowed(ddp: DDP) -> None:
    task = Uneven(miniature_task(ddp.rank, 2), {2: 1 + 3 * ddp.rank})
    seen = torch.zeros(1)

    def count(module: nn.Module, given: Any, output: Tensor) -> None:
        if module.training:
            dist.all_reduce(seen.add_(1.0))

    with miniature(ddp.rank, 2, task=task, epochs=2, loaders="join") as trainer:
        trainer.model.host.register_forward_hook(count)
        trainer.run()
        ddp.assert_same(alike(trainer))
    assert _steps(trainer) == 2 + 4


def test_a_shadow_counts_in_nothing() -> None:
    trainer = miniature(epochs=1)
    (batch, *_) = trainer.task.train_batches(1)
    counted = "num_batches_tracked"  # the other ranks count their pass, too, and all must be the same
    before = {
        name: each.clone() for name, each in trainer.model.named_buffers() if not name.endswith(counted)
    }
    weights = [each.clone() for each in trainer.model.parameters()]
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    sums, steps = train_on(
        trainer.model, [Shadow(batch)], trainer.optimizer, clip=5.0, after_backward=lambda: None
    )
    assert (sums, steps) == (MetricSums(), 1)
    buffers = dict(trainer.model.named_buffers())
    assert all(torch.equal(each, buffers[name]) for name, each in before.items())
    assert all(map(torch.equal, weights, trainer.model.parameters()))
