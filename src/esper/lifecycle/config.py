"""How a slot moves: its ramps, its cooldowns, its way of mixing."""

from dataclasses import dataclass
from enum import StrEnum

from esper.checks import check_int, check_number
from esper.errors import ConfigError
from esper.lifecycle.alpha import DEFAULT_STEEPNESS, AlphaCurve, check_steepness
from esper.lifecycle.stage import Stage


class Blend(StrEnum):
    """How a seed's output is mixed with the host's features."""

    ADD = "add"
    MULTIPLY = "multiply"
    GATE = "gate"


def check_blend(key: str, value: object) -> Blend:
    """`value` as a Blend. Raises ConfigError naming `key`; a str of the same text is none."""
    if not isinstance(value, Blend):
        raise ConfigError(key, value, f"one of {', '.join(Blend)}")
    return value


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """Settings of every slot of a model. Raises ConfigError for a value outside of what is accepted."""

    blend: Blend = Blend.ADD  # of a seed for which none is chosen
    curve: AlphaCurve = AlphaCurve.LINEAR
    steepness: float = DEFAULT_STEEPNESS  # of the sigmoid
    alpha_target: float = 1.0
    tempo: int = 5  # ticks of a ramp, up or down; 0: at once
    pruned_epochs: int = 1  # cooldown
    embargoed_epochs: int = 5
    resetting_epochs: int = 1

    def __post_init__(self) -> None:
        check_blend("slot.blend", self.blend)
        check_steepness("slot.steepness", self.steepness)
        if check_number("slot.alpha_target", self.alpha_target, 0.0, 1.0) == 0.0:
            # A ramp to 0 is how a slot says that it is being pruned.
            raise ConfigError("slot.alpha_target", self.alpha_target, "a number in (0, 1]")
        check_int("slot.tempo", self.tempo, 0)
        for name in ("pruned_epochs", "embargoed_epochs", "resetting_epochs"):
            check_int(f"slot.{name}", getattr(self, name), 1)

    def cooldown(self, stage: Stage) -> int:
        """Epochs that a slot stays in a cooldown stage. Raises KeyError for other stages."""
        return {
            Stage.PRUNED: self.pruned_epochs,
            Stage.EMBARGOED: self.embargoed_epochs,
            Stage.RESETTING: self.resetting_epochs,
        }[stage]
