"""Seeds born alike on every rank: where their random numbers come from, and how a birth is prepared.

A change of the model is prepared (built, or the error of building kept), confirmed by `Agreement.confirm`,
and then committed or dropped on all ranks. Nothing of it shows before the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from esper.distributed.digest import stable_digest, text_digest
from esper.lifecycle.record import SlotRecord


@lru_cache(maxsize=1024)
def birth_seed(run_seed: int, slot_id: str, birth: int) -> int:
    """What the generator of the slot's `birth`-th seed is seeded with: the same on every rank, 63 bits."""
    return stable_digest("birth", run_seed, slot_id, birth)


def birth_generator(run_seed: int, slot_id: str, birth: int) -> torch.Generator:
    """A generator for one birth; from the global one ranks may have drawn unequally."""
    return torch.Generator().manual_seed(birth_seed(run_seed, slot_id, birth))


def growth_rng_digest(run_seed: int, slots: Sequence[SlotRecord]) -> int:
    """63-bit digest of what each slot's next birth would be seeded with."""
    return text_digest(str([birth_seed(run_seed, slot.slot_id, slot.birth + 1) for slot in slots]))


@dataclass(frozen=True, slots=True)
class Birth:
    """A seed that was built and shows nowhere yet, or why there is none."""

    seed: nn.Module | None
    error: Exception | None

    @property
    def reason(self) -> str:
        """The error in words; "" for a seed that was built."""
        return "" if self.error is None else f"{type(self.error).__name__}: {self.error}"


def prepare_birth(build: Callable[[torch.Generator], nn.Module], generator: torch.Generator) -> Birth:
    """What `build` makes of `generator`, or the error that it raised."""
    try:
        return Birth(build(generator), None)
    except Exception as error:  # noqa: BLE001 - the other ranks wait in the confirmation and have to hear of it
        return Birth(None, error)
