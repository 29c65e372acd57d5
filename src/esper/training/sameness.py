"""What of a trainer has to be the same on all ranks, besides what its records say."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from esper.distributed.audit import State
from esper.distributed.growth import growth_rng_digest
from esper.distributed.replicate import Replica
from esper.lifecycle.record import SlotRecord
from esper.model import GrownModel
from esper.model.fingerprint import kind_text
from esper.modules import named_tensors
from esper.training.plain import to_plain

if TYPE_CHECKING:
    from esper.training.trainer import Trainer

NOT_REPLICATED = " learns and is not replicated"


def as_shown(records: Sequence[SlotRecord], alphas: Tensor) -> tuple[SlotRecord, ...]:
    """The records with each alpha that is not what the forward pass reads replaced by what it does read.

    `alphas` (slots,) is what it reads. So an alpha that one rank overwrote is found with its value.
    """
    meant = [record.alpha for record in records]
    # What a tensor makes of the numbers; an array does so in a fifth of the time.
    single = alphas.dtype is torch.float32
    expected = (array("f", meant) if single else torch.tensor(meant, dtype=alphas.dtype)).tolist()
    return tuple(
        record if shown == right else replace(record, alpha=shown)
        for record, shown, right in zip(records, alphas.tolist(), expected, strict=True)
    )


def layout_of(model: GrownModel, module: nn.Module | None) -> dict[str, str]:
    """Names, shapes and dtypes of all parameters and buffers; of a parameter whether it learns and whether
    `module` averages it; how many replicas there have been. With other numbers of any gloo would end the
    processes where they are averaged, or they would wait for each other.
    """
    replica = module if isinstance(module, Replica) else None
    covered = None if replica is None else replica.covered
    parameters, buffers = named_tensors(model)
    return {
        **{
            f"parameter {name}": f"{kind_text(one.dtype, one.shape)}{_part(one, covered)}"
            for name, one in parameters
        },
        **{f"buffer {name}": kind_text(one.dtype, one.shape) for name, one in buffers},
        **({} if replica is None else {"replica": f"number {replica.number} of this run"}),
    }


def _part(parameter: nn.Parameter, covered: frozenset[int] | None) -> str:
    if not parameter.requires_grad:
        return " frozen"
    return NOT_REPLICATED if covered is not None and id(parameter) not in covered else ""


def common_state(trainer: Trainer) -> State:
    """Slots, growth RNG, model, optimiser, controller and governor."""
    records = trainer.model.records()
    parameters, buffers = named_tensors(trainer.model)
    return {
        "slots": {record.slot_id: asdict(record) for record in as_shown(records, trainer.model.alphas)},
        "growth RNG": growth_rng_digest(trainer.config.seed, records),
        "parameters": dict(parameters),
        "buffers": dict(buffers),
        "optimiser": trainer.optimizer,
        "controller": to_plain(trainer.state_of_controller()),
        "governor": to_plain(trainer.safeguard.governor.state_dict()),
    }
