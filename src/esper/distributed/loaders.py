"""Which samples a rank trains on, and how all ranks come to make as many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, islice
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from esper.distributed.agreement import Agreement
from esper.distributed.digest import stable_digest
from esper.distributed.divergence import divergent_ranks, ranks_text
from esper.errors import CollectiveInLoader, LoaderMismatch
from esper.lockstep import FieldDifference

_T = TypeVar("_T")
# What a rank announces whose loader has no length.
UNKNOWN = -1


class LoaderPolicy(StrEnum):
    """What happens when ranks have different numbers of batches."""

    ERROR = "error"  # no rank begins the epoch
    TRUNCATE = "truncate"  # all stop with the first
    JOIN = "join"  # all go on to the last; a rank without a batch takes part in everything with weight 0


@dataclass(frozen=True, slots=True)
class Shadow(Generic[_T]):
    """A step of a rank that has no batch any more: one that it had, which is not to count."""

    batch: _T


def training_shard(samples: int, *, seed: int, epoch: int, rank: int, world_size: int) -> Tensor:
    """Shuffled indices (samples // world_size,) of this rank's samples; as many on every rank."""
    generator = torch.Generator().manual_seed(stable_digest("shuffle", seed, epoch))
    order = torch.randperm(samples, generator=generator)
    return order[: samples - samples % world_size][rank::world_size]


def evaluation_shard(samples: int, *, rank: int, world_size: int) -> Tensor:
    """Indices of the samples that this rank evaluates; together the ranks evaluate each sample once."""
    return torch.arange(rank, samples, world_size)


def check_announced(announced: Sequence[tuple[int, int]], epoch: int, policy: LoaderPolicy) -> None:
    """Raises LoaderMismatch when `policy` cannot do with what ranks announced, (rank, batches) pairs.

    With different numbers ERROR cannot: a rank with fewer would leave the others waiting for its gradients.
    JOIN needs a batch of each rank.
    """
    counts = {batches for _, batches in announced}
    if len(counts) == 1 or UNKNOWN in counts:
        return
    if policy is LoaderPolicy.ERROR:
        raise _mismatch(announced, epoch, "all must have as many, or loaders be truncate or join")
    if policy is LoaderPolicy.JOIN and 0 in counts:
        raise _mismatch(announced, epoch, "to join the others each must have at least one")


def agreed_batches(
    batches: Iterator[_T],
    announced: Sequence[tuple[int, int]],
    *,
    policy: LoaderPolicy,
    agreement: Agreement,
    epoch: int,
    sequence: Callable[[], int] = int,
) -> Iterator[_T | Shadow[_T]]:
    """Collective: every rank, same order, where a loader has no length. As many items on every rank.

    With lengths announced nothing is exchanged. Without one on any rank each step asks all ranks whether they
    have a batch. `sequence` counts the collectives that this rank has issued: a loader that communicates
    while it fetches cannot be joined, since a rank without a batch would not take part.

    Raises LoaderMismatch as `check_announced`, CollectiveInLoader, and what `Agreement.counts` raises.
    """
    check_announced(announced, epoch, policy)
    counts = [number for _, number in announced]
    if policy is LoaderPolicy.JOIN and len(announced) > 1:
        batches = _silent(batches, sequence, epoch)
    if UNKNOWN in counts:
        yield from _step_by_step(batches, policy, agreement, epoch)
    elif policy is LoaderPolicy.JOIN:
        yield from _shadowed(batches, max(counts))
    elif policy is LoaderPolicy.TRUNCATE:
        yield from islice(batches, min(counts))
    else:
        yield from batches


def issued(group: dist.ProcessGroup | None) -> int:
    """How many collectives this rank has issued in `group`; 0 in none."""
    if group is None:
        return 0
    number: int = group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # private
    return number


def _shadowed(batches: Iterable[_T], steps: int) -> Iterator[_T | Shadow[_T]]:
    done = 0
    for done, last in enumerate(batches, 1):  # noqa: B007  what the last one was is used below
        yield last
    for _ in range(done, steps):
        yield Shadow(last)


def _step_by_step(
    batches: Iterator[_T], policy: LoaderPolicy, agreement: Agreement, epoch: int
) -> Iterator[_T | Shadow[_T]]:
    last: _T | None = None
    for step in count(1):
        batch = next(batches, None)
        where = f"step {step} of epoch {epoch}"
        having = agreement.counts(batch is not None, "batch", where)
        if not any(having.values()):
            return
        if not all(having.values()):
            if policy is LoaderPolicy.TRUNCATE:
                return
            if policy is LoaderPolicy.ERROR or step == 1:
                raise _ran_out(having, where)
        if batch is not None:
            last = batch
            yield batch
        elif last is not None:
            yield Shadow(last)


def _silent(batches: Iterable[_T], sequence: Callable[[], int], epoch: int) -> Iterator[_T]:
    iterator = iter(batches)
    for step in count(1):
        before = sequence()
        batch = next(iterator, None)
        if sequence() != before:
            raise CollectiveInLoader(epoch, step, sequence() - before)
        if batch is None:
            return
        yield batch


def _mismatch(announced: Sequence[tuple[int, int]], epoch: int, rule: str) -> LoaderMismatch:
    difference = FieldDifference("batches", tuple((rank, str(batches)) for rank, batches in announced))
    counts = ", ".join(f"rank {rank}: {batches}" for rank, batches in announced)
    return LoaderMismatch(
        f"ranks announced different numbers of batches for epoch {epoch} ({counts}): {rule}",
        guilty=divergent_ranks(difference),
        fields=(difference,),
    )


def _ran_out(having: dict[int, int], where: str) -> LoaderMismatch:
    values = tuple((rank, "one" if has else "none") for rank, has in having.items())
    without = tuple(rank for rank, has in having.items() if not has)
    return LoaderMismatch(
        f"{ranks_text(without)} had no batch for {where}, the others had one: all must have as many, or "
        "loaders be truncate or, with one batch on each rank, join",
        guilty=without,
        fields=(FieldDifference("batches", values),),
    )
