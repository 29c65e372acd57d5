"""What a trainer asks of its data, and data that is held in memory and sharded over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from esper.distributed.loaders import evaluation_shard, training_shard

# Inputs (N, ...) and the classes (N,) they belong to.
Batch = tuple[Tensor, Tensor]


class Task(Protocol):
    """One rank's share of a data set."""

    def announce(self, epoch: int) -> int | None:
        """How many batches `train_batches(epoch)` will yield; None when nobody knows, which costs an exchange
        a step.
        """
        ...

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's batches of an epoch. The same arguments give the same batches."""
        ...

    def test_batches(self) -> Iterator[Batch]:
        """This rank's part of the data for evaluation, the same in every epoch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedTask:
    """A data set in memory: inputs (N, ...), classes (N,). Each rank holds all of it and uses its shard."""

    train: Batch
    test: Batch
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def announce(self, epoch: int) -> int:
        """The same in every epoch and on every rank: all shards have the same size."""
        return -(-(len(self.train[1]) // self.world_size) // self.batch_size)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """Batches of `batch_size`, the last one smaller if need be, shuffled by (seed, epoch)."""
        inputs, classes = self.train
        shard = training_shard(
            len(classes), seed=self.seed, epoch=epoch, rank=self.rank, world_size=self.world_size
        )
        for indices in torch.split(shard, self.batch_size):
            yield inputs[indices], classes[indices]

    def test_batches(self) -> Iterator[Batch]:
        """This rank's part in one batch."""
        inputs, classes = self.test
        shard = evaluation_shard(len(classes), rank=self.rank, world_size=self.world_size)
        yield inputs[shard], classes[shard]
