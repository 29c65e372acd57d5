"""What a controller can ask for, as values that every rank can compare."""

import hashlib
import json
from dataclasses import astuple, dataclass, field
from functools import lru_cache

from esper.lifecycle.config import Blend


@dataclass(frozen=True, slots=True)
class Germinate:
    """Put a new seed of this blueprint into a DORMANT slot.

    `blend` is how it will be mixed, from BLENDING to its end; None: as the slot's config says.
    """

    slot_id: str
    blueprint: str
    blend: Blend | None = None

    @property
    def manner(self) -> str:
        """How, in words; "" for what the config says."""
        return "" if self.blend is None else f"by {self.blend}"


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the slot's seed to its next stage, if the gate before it passes."""

    slot_id: str

    @property
    def manner(self) -> str:
        """There is one way only."""
        return ""


@dataclass(frozen=True, slots=True)
class Prune:
    """Take the slot's seed out; from BLENDING and HOLDING alpha first goes down over `tempo` epochs.

    0: at once; None: the tempo of the slot's config. Before BLENDING it is always at once.
    """

    slot_id: str
    tempo: int | None = None

    @property
    def manner(self) -> str:
        """How, in words; "" for what the config says."""
        return _over(self.tempo)


@dataclass(frozen=True, slots=True)
class SetAlpha:
    """Send alpha to another `target` in (0, 1] over `tempo` epochs, where it holds in BLENDING or HOLDING.

    HOLDING goes back to BLENDING. 0: at once; None: the tempo of the slot's config.
    """

    slot_id: str
    target: float
    tempo: int | None = None

    @property
    def manner(self) -> str:
        """How, in words."""
        return " ".join(filter(None, (f"to {self.target}", _over(self.tempo))))


Action = Germinate | Advance | Prune | SetAlpha


def _over(tempo: int | None) -> str:
    if tempo is None:
        return ""
    return f"over {tempo} epoch{'' if tempo == 1 else 's'}" if tempo else "at once"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do in this epoch, in order; no actions means wait.

    `reasons`: why, in words for people, one an action ("": nothing to add) or none at all. They are no part
    of what is decided.
    """

    actions: tuple[Action, ...] = ()
    reasons: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.reasons and len(self.reasons) != len(self.actions):
            raise ValueError(f"Decision: {len(self.reasons)} reasons for {len(self.actions)} actions")

    def digest(self) -> int:
        """63-bit digest, the same in every process (Python's own `hash` of a str is not)."""
        return _digest(self.actions)


@lru_cache(maxsize=64)  # most decisions are to wait
def _digest(actions: tuple[Action, ...]) -> int:
    text = json.dumps([[type(action).__name__, *map(_plain, astuple(action))] for action in actions])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _plain(value: object) -> object:
    # 1 and 1.0 are equal, and so are 0.0 and -0.0; json writes them otherwise.
    return value + 0.0 if isinstance(value, (int, float)) else value
