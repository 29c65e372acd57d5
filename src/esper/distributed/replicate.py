"""DistributedDataParallel as an epoch of a growing model needs it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from esper.distributed.oneround import SHORT, mean_of_gradients
from esper.errors import CounterfactualOnReplica

# torch 2.13 renamed `broadcast_buffers`, and warns at the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters


class Replica(DistributedDataParallel):
    """A model whose gradients are averaged. What a rank may ask alone it asks the bare one."""

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        super().__init__(module, **settings)
        learning = [each for each in module.parameters() if each.requires_grad]
        # What the reducer was made for; it never learns of what requires gradients later.
        self.covered = frozenset(map(id, learning))
        if dist.get_backend(self.process_group) == "gloo" and _are_few(learning):
            self.register_comm_hook(self.process_group, mean_of_gradients)

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """As the model's. Raises CounterfactualOnReplica where it is given `alpha_overrides`."""
        if "alpha_overrides" in keywords:
            raise CounterfactualOnReplica(tuple(keywords["alpha_overrides"] or ()))
        return super().forward(*inputs, **keywords)  # type: ignore[no-untyped-call]


def _are_few(parameters: Sequence[nn.Parameter]) -> bool:
    here = all(each.device.type == "cpu" for each in parameters)
    return here and sum(each.numel() for each in parameters) <= SHORT


def replicate(module: nn.Module, group: dist.ProcessGroup) -> Replica:
    """`module` with its gradients averaged over `group`; call it anew at each epoch's start, on every rank.

    It covers the parameters that train now, and starts with the same buckets in a resumed run. It broadcasts
    nothing, which would hide what has drifted, so the ranks must have agreed on what they replicate
    (`Agreement.begin`): with unequal numbers of parameters the backward pass aborts the process.
    """
    if _RENAMED:
        return Replica(module, process_group=group, init_sync=False, forward_sync_buffers=False)
    return Replica(module, process_group=group, init_sync=False, broadcast_buffers=False)
