"""Which samples a rank trains on, and whether all ranks will make as many steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esper.distributed.digest import stable_digest
from esper.distributed.divergence import divergent_ranks
from esper.errors import LoaderMismatch
from esper.lockstep import FieldDifference


def training_shard(samples: int, *, seed: int, epoch: int, rank: int, world_size: int) -> Tensor:
    """Shuffled indices (samples // world_size,) of this rank's samples; as many on every rank."""
    generator = torch.Generator().manual_seed(stable_digest("shuffle", seed, epoch))
    order = torch.randperm(samples, generator=generator)
    return order[: samples - samples % world_size][rank::world_size]


def evaluation_shard(samples: int, *, rank: int, world_size: int) -> Tensor:
    """Indices of the samples that this rank evaluates; together the ranks evaluate each sample once."""
    return torch.arange(rank, samples, world_size)


def require_equal_batches(announced: Sequence[tuple[int, int]], epoch: int) -> int:
    """The number of batches that every rank announced for `epoch`, from (rank, batches) pairs.

    Raises LoaderMismatch when they are not all the same: the rank with fewer would leave the others waiting
    for its gradients.
    """
    difference = FieldDifference("batches", tuple((rank, str(batches)) for rank, batches in announced))
    if len({batches for _, batches in announced}) == 1:
        return announced[0][1]
    counts = ", ".join(f"rank {rank}: {batches}" for rank, batches in announced)
    raise LoaderMismatch(
        f"ranks announced different numbers of batches for epoch {epoch} ({counts}): all must have as many",
        guilty=divergent_ranks(difference),
        fields=(difference,),
    )
