"""What a controller can ask for, as values that every rank can compare."""

import hashlib
import json
from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Germinate:
    """Put a new seed of this blueprint into a DORMANT slot."""

    slot_id: str
    blueprint: str


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the slot's seed to its next stage, if the gate before it passes."""

    slot_id: str


@dataclass(frozen=True, slots=True)
class Prune:
    """Take the slot's seed out."""

    slot_id: str


Action = Germinate | Advance | Prune


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do in this epoch, in order; no actions means wait."""

    actions: tuple[Action, ...] = ()

    def digest(self) -> int:
        """63-bit digest, the same in every process (Python's own `hash` of a str is not)."""
        text = json.dumps([[type(action).__name__, *astuple(action)] for action in self.actions])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
