"""The state of model and optimiser as plain values: what a rollback goes back to and a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor

from esper.errors import BadState
from esper.lifecycle.state import SlotState
from esper.model import GrownModel
from esper.modules import named_tensors, parameters_of
from esper.training.optimizer import follow_parameters

Saved = dict[str, Any]
# Each tensor that was copied, and its copy.
Pairs = list[tuple[Tensor, Tensor]]


def capture(model: GrownModel, optimizer: torch.optim.Optimizer) -> Saved:
    """A copy of all slots, tensors and optimiser state; nested dicts and lists of plain values and tensors.

    The optimiser is made to step the model's present parameters, as the next epoch will.
    """
    follow_parameters(optimizer, parameters_of(model))
    slots = {slot_id: model.slots[slot_id].lifecycle_state() for slot_id in model.slot_ids}
    return {"slots": slots, **_captured(model, optimizer, [])}


def restore(model: GrownModel, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Make model and optimiser what `capture` saw. Seeds are rebuilt from their blueprints.

    Not atomic: on an error, of which BadState is only one kind, parts may be restored.
    """
    slots = saved["slots"]
    if tuple(slots) != model.slot_ids:
        raise BadState("slots", tuple(slots), f"exactly {', '.join(model.slot_ids)}")
    for slot_id in model.slot_ids:
        model.slots[slot_id].load_lifecycle_state(slots[slot_id])
    model.load_state_dict(saved["tensors"])
    follow_parameters(optimizer, parameters_of(model))
    # Copied again: the optimiser keeps the tensors it is given, and would change the snapshot.
    optimizer.load_state_dict(_copied(saved["optimizer"], []))


class Snapshot:
    """What `capture` gives, taken each epoch and gone back to hardly ever.

    As long as model and optimiser are made of the same tensors it is written into the same copies: making
    them anew takes four times as long.
    """

    def __init__(self) -> None:
        self._saved: Saved = {}
        self._states: dict[str, SlotState] = {}
        self._made_of: list[object] = []
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []

    def take(self, model: GrownModel, optimizer: torch.optim.Optimizer) -> None:
        """Keep what is there now. As `capture`."""
        self._states = model.states()
        made_of = _made_of(model, optimizer)
        if len(made_of) != len(self._made_of) or not all(map(is_, made_of, self._made_of)):
            self._take_anew(model, optimizer)
            return
        for group, kept in zip(optimizer.param_groups, self._saved["optimizer"]["param_groups"], strict=True):
            kept.update({name: value for name, value in group.items() if name != "params"})
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._tensors)

    def saved(self) -> Saved:
        """It, as `restore` takes it. What is in it changes with the next `take`."""
        return {**self._saved, "slots": {slot_id: state.to_dict() for slot_id, state in self._states.items()}}

    def _take_anew(self, model: GrownModel, optimizer: torch.optim.Optimizer) -> None:
        follow_parameters(optimizer, parameters_of(model))
        pairs: Pairs = []
        self._saved = _captured(model, optimizer, pairs)
        self._tensors, self._copies = [one for one, _ in pairs], [copy for _, copy in pairs]
        made_of = _made_of(model, optimizer)
        self._made_of = made_of if _is_all(made_of, self._tensors, self._saved) else []


def random_state() -> Saved:
    """The state of torch's global generators: of the CPU, and of each GPU where those are in use."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = torch.cuda.get_rng_state_all() if in_use else []
    return {"cpu": torch.get_rng_state(), "cuda": gpus}


def set_random_state(saved: Mapping[str, Any]) -> None:
    """Make torch's global generators go on from what `random_state` gave."""
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])


@torch.no_grad()
def _captured(model: GrownModel, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Saved:
    return {
        "tensors": _copied(dict(model.state_dict(keep_vars=True)), pairs),
        "optimizer": _copied(optimizer.state_dict(), pairs),
    }


def _made_of(model: GrownModel, optimizer: torch.optim.Optimizer) -> list[object]:
    """Every tensor of the model and its type, which `nn.Module.to` changes; what the optimiser steps, and
    every value of its state.
    """
    parameters, buffers = named_tensors(model)
    parts: list[object] = [one for _, one in parameters] + [one for _, one in buffers]
    parts += [one.dtype for _, one in parameters] + [one.dtype for _, one in buffers]
    for group in optimizer.param_groups:
        parts += group["params"]
    for state in optimizer.state.values():
        parts += state.values()
    return parts


def _is_all(made_of: list[object], tensors: list[Tensor], saved: Saved) -> bool:
    """Whether nothing is saved that may become another without a part becoming another: a module's extra
    state, a learning rate that is a tensor.
    """
    known = set(map(id, made_of))
    plain = all(isinstance(each, Tensor) for each in saved["tensors"].values())
    return plain and all(id(tensor) in known for tensor in tensors)


def _copied(value: Any, pairs: Pairs) -> Any:
    # `copy.deepcopy` takes ten times as long, and each epoch keeps a copy.
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        pairs.append((value, copy))
        return copy
    if isinstance(value, dict):
        return {key: _copied(each, pairs) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each, pairs) for each in value]
    return value  # numbers, texts, None, and tuples of them
