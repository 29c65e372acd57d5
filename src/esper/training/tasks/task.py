"""What a trainer asks of its data, and data that is held in memory and sharded over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from esper.distributed.loaders import evaluation_shard, training_shard

# Inputs (N, ...) and the classes (N,) they belong to; in text (N, T) each.
Batch = tuple[Tensor, Tensor]
# Samples that are evaluated at a time, so that what is in between fits into memory.
_EVALUATED = 1024


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
    """A data set in memory: inputs (N, ...), classes (N,). Each rank holds all of it and uses its shard.

    An epoch trains on at most `epoch_samples` of them over all ranks, others each time. `prepare` makes of
    the inputs of a batch as they are held what the network takes.
    """

    train: Batch
    test: Batch
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    epoch_samples: int | None = None
    prepare: Callable[[Tensor], Tensor] | None = None

    def announce(self, epoch: int) -> int:
        """The same in every epoch and on every rank: all shards have the same size."""
        return -(-self._shard_samples() // self.batch_size)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """Batches of `batch_size`, the last one smaller if need be, shuffled by (seed, epoch)."""
        inputs, classes = self.train
        shard = training_shard(
            len(classes), seed=self.seed, epoch=epoch, rank=self.rank, world_size=self.world_size
        )
        for indices in torch.split(shard[: self._shard_samples()], self.batch_size):
            yield self._prepared(inputs[indices]), classes[indices]

    def test_batches(self) -> Iterator[Batch]:
        """This rank's part, in batches as large as memory allows."""
        inputs, classes = self.test
        shard = evaluation_shard(len(classes), rank=self.rank, world_size=self.world_size)
        for indices in torch.split(shard, _EVALUATED):
            yield self._prepared(inputs[indices]), classes[indices]

    def _shard_samples(self) -> int:
        samples = len(self.train[1])
        return min(samples, self.epoch_samples or samples) // self.world_size

    def _prepared(self, inputs: Tensor) -> Tensor:
        return inputs if self.prepare is None else self.prepare(inputs)
