"""DistributedDataParallel as an epoch of a growing model needs it."""

from __future__ import annotations

import inspect

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# torch 2.13 renamed `broadcast_buffers`, and warns at the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters


def replicate(module: nn.Module, group: dist.ProcessGroup) -> DistributedDataParallel:
    """`module` with its gradients averaged over `group`; call it anew at each epoch's start, on every rank.

    It covers the parameters that train now, and starts with the same buckets in a resumed run. It broadcasts
    nothing, which would hide what has drifted, so the ranks must have agreed on the model's fingerprint:
    with unequal numbers of parameters the backward pass aborts the process.
    """
    if _RENAMED:
        return DistributedDataParallel(
            module, process_group=group, init_sync=False, forward_sync_buffers=False
        )
    return DistributedDataParallel(module, process_group=group, init_sync=False, broadcast_buffers=False)
