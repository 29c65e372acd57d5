"""BatchNorm's running statistics, which each rank gathers from its own batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.distributed.replicate import Replica
from esper.modules import modules_of

_T = TypeVar("_T")


def running_statistics(model: nn.Module) -> list[Tensor]:
    """All running means and variances (C,), in the modules' order: the tensors themselves."""
    return [
        tensor
        for module in modules_of(model)
        if isinstance(module, _BatchNorm)
        for tensor in (module.running_mean, module.running_var)
        if tensor is not None
    ]


@torch.no_grad()
def heal(statistics: list[Tensor], good: list[Tensor]) -> None:
    """Put `good` values where `statistics` are not finite, in place: a nan would stay in them for ever."""
    for tensor, known in zip(statistics, good, strict=True):
        tensor.copy_(torch.where(torch.isfinite(tensor), tensor, known))


def average_statistics(model: nn.Module, mean_: Callable[[Tensor], None]) -> None:
    """Replace all running means and variances by what `mean_` makes of them, in place, in one flat tensor.

    Nothing is called for a model without such statistics.
    """
    statistics = running_statistics(model)
    if not statistics:
        return
    flat = torch.cat(statistics)
    mean_(flat)
    torch._foreach_copy_(statistics, torch.split(flat, [len(tensor) for tensor in statistics]))


def with_statistics(batches: Iterable[_T], steps: int, module: Replica) -> Iterator[_T]:
    """The `batches`, of which each rank has `steps`; with the last one's gradients all running means and
    variances are replaced by their means over ranks, where `module` can: the exchange alone takes longer.
    """
    module.take_along(())
    for step, batch in enumerate(batches, 1):
        if step == steps:
            module.take_along(running_statistics(module))
        yield batch


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Passes inside leave all running means and variances as they were; they count as passes, as the other
    ranks' do.
    """
    buffers = running_statistics(model)
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
