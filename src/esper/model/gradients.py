"""Reading the gradients of seeds and their host after a backward pass, without waiting for the device."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from esper.lifecycle.metrics import GradientStats
from esper.model.grown import GrownModel
from esper.modules import parameters_of


class GradientLog:
    """Gradient norms, one reading a step: they stay on the model's device until `stats` asks for them."""

    def __init__(self, model: GrownModel, slot_ids: Sequence[str]) -> None:
        """Raises UnknownSlot."""
        self._seeds = [(slot_id, model.slots[slot_id].seed_parameters()) for slot_id in slot_ids]
        self._host = tuple(parameters_of(model.host)) if slot_ids else ()
        self._rows: list[Tensor] = []
        self._sizes: list[tuple[int, list[tuple[str, int, int]]]] = []

    def read(self) -> None:
        """Take down the norms of the gradients that are there now; nothing of them is copied to the host."""
        if not self._seeds:
            return
        seeds = [(slot_id, _gradients(parameters)) for slot_id, parameters in self._seeds]
        host = _gradients(self._host)
        if not host or not any(gradients for _, gradients in seeds):
            return
        flat = [*host, *(gradient for _, gradients in seeds for gradient in gradients)]
        norms = torch.stack(torch._foreach_norm(flat)).double()
        of_host = torch.linalg.vector_norm(norms[: len(host)]).reshape(1)
        self._rows.append(torch.cat([of_host, norms[len(host) :]]))
        sizes = [(slot_id, len(gradients), _count(gradients)) for slot_id, gradients in seeds if gradients]
        self._sizes.append((_count(host), sizes))

    def stats(self) -> list[dict[str, GradientStats]]:
        """The readings so far, oldest first, by slot: one transfer from the device for all of them."""
        if not self._rows:
            return []
        values = iter(torch.cat(self._rows).tolist())
        found = []
        for host_size, sizes in self._sizes:
            host_norm = next(values)
            found.append(
                {
                    slot_id: GradientStats(
                        host_norm, tuple(next(values) for _ in range(tensors)), host_size, size
                    )
                    for slot_id, tensors, size in sizes
                }
            )
        return found


def gradient_stats(model: GrownModel, slot_id: str) -> GradientStats | None:
    """Gradient norms of a slot's seed, one a tensor, and of the whole host; None if either has no gradients.

    Raises UnknownSlot.
    """
    log = GradientLog(model, [slot_id])
    log.read()
    found = log.stats()
    return found[0][slot_id] if found else None


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
