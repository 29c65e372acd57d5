"""The state of model and optimiser as plain values: what a rollback goes back to and a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from esper.errors import BadState
from esper.model import GrownModel
from esper.training.optimizer import follow_parameters

Saved = dict[str, Any]


def capture(model: GrownModel, optimizer: torch.optim.Optimizer) -> Saved:
    """A copy of all slots, tensors and optimiser state; nested dicts and lists of plain values and tensors.

    The optimiser is made to step the model's present parameters, as the next epoch will.
    """
    follow_parameters(optimizer, model.parameters())
    return {
        "slots": {slot_id: model.slots[slot_id].lifecycle_state() for slot_id in model.slot_ids},
        "tensors": _copied(dict(model.state_dict())),
        "optimizer": _copied(optimizer.state_dict()),
    }


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
    follow_parameters(optimizer, model.parameters())
    # Copied again: the optimiser keeps the tensors it is given, and would change the snapshot.
    optimizer.load_state_dict(_copied(saved["optimizer"]))


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
def _copied(value: Any) -> Any:
    return _copy_of(value)


def _copy_of(value: Any) -> Any:
    # `copy.deepcopy` takes ten times as long, and each epoch keeps a copy.
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy_of(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copy_of(each) for each in value]
    return value  # numbers, texts, None, and tuples of them
