"""Reading the gradients of a seed and its host after a backward pass."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from esper.lifecycle.metrics import GradientStats
from esper.model.grown import GrownModel


def gradient_stats(model: GrownModel, slot_id: str) -> GradientStats | None:
    """Gradient norms of a slot's seed, one a tensor, and of the whole host; None if either has no gradients.

    Raises UnknownSlot.
    """
    seed = _gradients(model.slots[slot_id].seed_parameters())
    host = _gradients(model.host.parameters())
    if not seed or not host:
        return None
    # One transfer from the device for all norms.
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in [*host, *seed]]).double()
    host_norms, seed_norms = norms[: len(host)], norms[len(host) :]
    host_norm, *each = torch.cat([torch.linalg.vector_norm(host_norms).reshape(1), seed_norms]).tolist()
    return GradientStats(host_norm, tuple(each), _count(host), _count(seed))


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
