"""BatchNorm's statistics are averaged once an epoch: with its last gradients, or in their own exchange."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.distributed.replicate import Replica
from esper.training import Trainer
from esper.training.tasks import Batch, Task
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import EPOCHS, Uneven, alike, miniature, miniature_task


def exchanges(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the ranks take means of, as they do."""
    seen: list[str] = []
    mean_ = trainer.agreement.mean_

    def noted(values: Tensor, purpose: str) -> None:
        seen.append(purpose)
        mean_(values, purpose)

    monkeypatch.setattr(trainer.agreement, "mean_", noted)
    return seen


@pytest.mark.ddp(2)
def test_both_ways_come_to_the_same_bits(ddp: DDP, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = []
    for alone in (False, True):
        if alone:
            monkeypatch.setattr(Replica, "take_along", lambda *_: None)
        with miniature(ddp.rank, 2) as trainer:
            seen = exchanges(trainer, monkeypatch)
            trainer.run()
            found.append(alike(trainer))
        assert seen == ["buffers"] * (EPOCHS if alone else 0)
    one, other = found
    assert (one["history"], one["slots"]) == (other["history"], other["slots"])
    torch.testing.assert_close(one["model"], other["model"], rtol=0.0, atol=0.0)
    states = [each["optimizer"]["state"] for each in found]
    torch.testing.assert_close(*states, rtol=0.0, atol=0.0)
    ddp.assert_same(found)


@dataclass(frozen=True)
class Spoilt:
    """A task of which the last batch of one epoch is not a number on one rank."""

    inner: Task
    epoch: int

    def announce(self, epoch: int) -> int | None:
        return self.inner.announce(epoch)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        *first, (inputs, classes) = self.inner.train_batches(epoch)
        yield from first
        yield (inputs * math.nan if epoch == self.epoch else inputs), classes

    def test_batches(self) -> Iterator[Batch]:
        return self.inner.test_batches()


@pytest.mark.ddp(2)
def test_after_a_last_step_that_is_not_taken_they_are_averaged_again(
    ddp: DDP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank is back at statistics of its own, which the audits would find to differ."""
    task = miniature_task(ddp.rank, 2)
    with miniature(
        ddp.rank,
        2,
        task=Spoilt(task, 3) if ddp.rank == 1 else task,
        governor={"enabled": False},
        agreement={"deadline": 30.0, "audit_every": 1},
    ) as trainer:
        seen = exchanges(trainer, monkeypatch)
        trainer.run()
        assert seen == ["buffers"]
        assert trainer.state_dict()["steps"] == 2 * EPOCHS - 1
        ddp.assert_same(list(trainer.model.buffers()))


@pytest.mark.ddp(2)
@pytest.mark.parametrize("lengths", [{2: 2, 3: 3}, {2: -2}])
def test_where_ranks_do_not_end_alike_they_have_an_exchange(
    ddp: DDP, lengths: dict[int, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has a batch more in an epoch, or nobody knows how many there will be."""
    task = miniature_task(ddp.rank, 2)
    uneven = ddp.rank == 1 or -2 in lengths.values()
    with miniature(
        ddp.rank,
        2,
        task=Uneven(task, lengths) if uneven else task,
        loaders="join",
        agreement={"deadline": 30.0, "audit_every": 1},
    ) as trainer:
        seen = exchanges(trainer, monkeypatch)
        trainer.run()
        assert seen == ["buffers"]
        ddp.assert_same(alike(trainer))
