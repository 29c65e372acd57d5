"""DistributedDataParallel as an epoch of a growing model needs it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from esper.distributed.oneround import SHORT, OneRound, mean_of_gradients
from esper.errors import CounterfactualOnReplica
from esper.modules import parameters_of

# torch 2.13 renamed `broadcast_buffers`, and warns at the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters


class Replica(DistributedDataParallel):
    """A model whose gradients are averaged. What a rank may ask alone it asks the bare one."""

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        super().__init__(module, **settings)
        self.number = 1  # among the replicas of a run
        # What the reducer was made for; it never learns of what requires gradients later.
        self._learning = _learning(module)
        self.covered = frozenset(map(id, self._learning))
        self._kinds = _kinds(self._learning)
        self._round = OneRound(self.process_group)
        self.in_one_round = dist.get_backend(self.process_group) == "gloo" and _are_few(self._learning)
        if self.in_one_round:
            self.register_comm_hook(self._round, mean_of_gradients)

    def serves(self, module: nn.Module) -> bool:
        """Whether it is of this module, and of what learns in it now."""
        learning = _learning(module)
        same = len(learning) == len(self._learning) and all(map(is_, learning, self._learning))
        return self.module is module and same and self._kinds == _kinds(learning)

    def take_along(self, tensors: Sequence[Tensor]) -> None:
        """Have `tensors`, each (N,), be replaced by their means over ranks with the next gradients, as long
        as all ranks do so. `took_along` says whether that was possible, the same on every rank.
        """
        self._round.take_along(tensors)

    @property
    def took_along(self) -> bool:
        """Whether what was last to be taken along is averaged."""
        return self._round.went_along

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """As the model's. Raises CounterfactualOnReplica where it is given `alpha_overrides`."""
        if "alpha_overrides" in keywords:
            raise CounterfactualOnReplica(tuple(keywords["alpha_overrides"] or ()))
        return super().forward(*inputs, **keywords)  # type: ignore[no-untyped-call]


class Replication:
    """The replicas of one run in one group, an epoch each: a new one, or the last where that serves."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._kept: Replica | None = None
        self._made = 0

    def of(self, module: nn.Module) -> Replica:
        """`module` with its gradients averaged. Call it at each epoch's start, on every rank, and have the
        ranks agree on the replica's `number`: a new one exchanges more in its first steps.
        """
        kept, self._kept = self._kept, None
        if kept is not None and kept.serves(module):
            return kept
        del kept  # before there is another: two would hook into the same parameters
        replica = replicate(module, self._group)
        self._made += 1
        replica.number = self._made
        return replica

    def keep(self, replica: Replica) -> None:
        """It has been trained, and no step of it is unfinished: it may serve again, where a new one comes to
        the same bits. In one round a mean does not depend on the bucket that its value lies in.
        """
        self._kept = replica if replica.in_one_round else None

    def forget(self) -> None:
        """Go on with a new one."""
        self._kept = None


def _kinds(parameters: Sequence[nn.Parameter]) -> list[tuple[torch.dtype, torch.device]]:
    return [(each.dtype, each.device) for each in parameters]


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [each for each in parameters_of(module) if each.requires_grad]


def _are_few(parameters: Sequence[nn.Parameter]) -> bool:
    here = all(each.device.type == "cpu" for each in parameters)
    return here and sum(each.numel() for each in parameters) <= SHORT


def replicate(module: nn.Module, group: dist.ProcessGroup) -> Replica:
    """`module` with its gradients averaged over `group`; call it anew, on every rank, where other parameters
    learn than before.

    It covers the parameters that train now, and starts with the same buckets in a resumed run. It broadcasts
    nothing, which would hide what has drifted, so the ranks must have agreed on what they replicate
    (`Agreement.begin`): with unequal numbers of parameters the backward pass aborts the process.
    """
    if _RENAMED:
        return Replica(module, process_group=group, init_sync=False, forward_sync_buffers=False)
    return Replica(module, process_group=group, init_sync=False, broadcast_buffers=False)
