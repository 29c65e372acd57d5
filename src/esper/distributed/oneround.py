"""Means of a few values in one round: each rank sends all it has to each other, and adds up what came.

gloo's reductions take six steps at four ranks, one after the other, in each of which every rank waits for
another: with more ranks than processors they cost more than the bytes.
"""

# Without annotations as texts: DDP compares those of a hook with the types themselves.
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from esper.lockstep.watching import averaging

# How many values at most go in one round: of more, bytes cost more than rounds.
SHORT = 4096


def mean_of(copies: Tensor, ranks: int) -> Tensor:
    """Mean (N,) of what all ranks sent, `copies` (ranks * N,), which it overwrites.

    Row after row: the order in which a reduction adds depends on the processor, and where in a bucket a
    value lies.
    """
    total: Tensor
    total, *others = copies.view(ranks, -1)
    for other in others:
        total += other
    return total.div_(ranks)


class OneRound:
    """How the gradients of one replica are averaged, and what else is with them, once."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.along: Sequence[Tensor] = ()
        self.went_along = False  # what was to go along is averaged

    def take_along(self, tensors: Sequence[Tensor]) -> None:
        """Have `tensors`, each (N,), be replaced by their means with the next gradients, where these go in a
        single bucket: the backward pass is over then, and nothing in it still needs them as they were.
        """
        self.along, self.went_along = tensors, False

    def leave(self, bucket: dist.GradBucket) -> Sequence[Tensor]:  # type: ignore[name-defined]
        """What goes along with this bucket."""
        gradients, along, self.along = bucket.buffer(), self.along, ()
        alone = bucket.index() == 0 and bucket.is_last() and gradients.layout is torch.strided
        alike = all(one.dtype == gradients.dtype and one.device == gradients.device for one in along)
        self.went_along = alone and alike and bool(along)
        return along if self.went_along else ()


@averaging
def mean_of_gradients(
    state: OneRound,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Collective: every rank, same order. DDP's communication hook for a model whose gradients are few.

    It waits here, and not in a callback of a future: that would run in a thread of gloo, which a program that
    waits could still be woken by, as far as lockstep knows.
    """
    gradients, ranks = bucket.buffer(), state.group.size()
    along = state.leave(bucket)
    if gradients.layout is torch.strided:
        mine = torch.cat([gradients, *along]) if along else gradients
        copies = mine.repeat(ranks)
        gathered = torch.empty_like(copies)
        dist.all_to_all_single(gathered, copies, group=state.group)
        means = torch.split(mean_of(gathered, ranks), [len(one) for one in (gradients, *along)])
        torch._foreach_copy_([gradients, *along], means)
    else:  # an embedding's
        dist.all_reduce(gradients, group=state.group)
        gradients.div_(ranks)
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(gradients)
    return future
