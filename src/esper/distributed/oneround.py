"""Means of a few values in one round: each rank sends all it has to each other, and adds up what came.

gloo's reductions take six steps at four ranks, one after the other, in each of which every rank waits for
another: with more ranks than processors they cost more than the bytes.
"""

# Without annotations as texts: DDP compares those of a hook with the types themselves.
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


@averaging
def mean_of_gradients(
    group: dist.ProcessGroup,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Collective: every rank, same order. DDP's communication hook for a model whose gradients are few.

    It waits here, and not in a callback of a future: that would run in a thread of gloo, which a program that
    waits could still be woken by, as far as lockstep knows.
    """
    gradients, ranks = bucket.buffer(), group.size()
    if gradients.layout is torch.strided:
        copies = gradients.repeat(ranks)
        gathered = torch.empty_like(copies)
        dist.all_to_all_single(gathered, copies, group=group)
        gradients.copy_(mean_of(gathered, ranks))
    else:  # an embedding's
        dist.all_reduce(gradients, group=group)
        gradients.div_(ranks)
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(gradients)
    return future
