"""How much of a seed is mixed in, and the ramps along which that changes. Pure Python, no tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from esper.checks import check_int, check_number
from esper.errors import AlphaNotHolding, BadState, ConfigError

DEFAULT_STEEPNESS = 12.0


class AlphaMode(IntEnum):
    """What alpha does at the next tick. The codes are persisted."""

    HOLD = 0
    UP = 1
    DOWN = 2


class AlphaCurve(StrEnum):
    """Shape of a ramp over its ticks."""

    LINEAR = "linear"
    COSINE = "cosine"
    SIGMOID = "sigmoid"


def curve_value(curve: AlphaCurve, t: float, steepness: float = DEFAULT_STEEPNESS) -> float:
    """How much of a ramp is done at time `t` in [0, 1]: 0 at 0, 1 at 1, never falling in between.

    Cosine is (1 - cos(pi t)) / 2. Sigmoid is (S(k(t - 1/2)) - S(-k/2)) / (S(k/2) - S(-k/2)) with S the
    logistic function and k the steepness.
    """
    if curve is AlphaCurve.LINEAR:
        return t
    if curve is AlphaCurve.COSINE:
        return (1.0 - math.cos(math.pi * t)) / 2.0
    # S(x) = (1 + tanh(x / 2)) / 2 makes the ones cancel. exp would overflow for a large k, and for a small
    # one S(k/2) - S(-k/2) would lose every digit.
    edge = math.tanh(steepness / 4.0)
    return (math.tanh(steepness * (t - 0.5) / 2.0) + edge) / (2.0 * edge)


@dataclass(frozen=True, slots=True)
class AlphaController:
    """The only owner of a slot's alpha: a value that each step replaces by the next one.

    A ramp from `start` to `target` takes `ticks` ticks, of which `done` are over. Alpha and mode follow
    from these, so they cannot disagree with them.
    """

    start: float = 0.0
    target: float = 0.0
    ticks: int = 0
    done: int = 0
    curve: AlphaCurve = AlphaCurve.LINEAR
    steepness: float = DEFAULT_STEEPNESS

    def __post_init__(self) -> None:
        check_number("alpha.start", self.start, 0.0, 1.0)
        check_number("alpha.target", self.target, 0.0, 1.0)
        check_int("alpha.ticks", self.ticks, 0)
        check_int("alpha.done", self.done, 0)
        check_steepness("alpha.steepness", self.steepness)
        if self.done > self.ticks:
            raise ConfigError("alpha.done", self.done, f"at most alpha.ticks={self.ticks}")

    @property
    def alpha(self) -> float:
        """The present alpha, in [0, 1]."""
        if self.done == self.ticks:
            return self.target
        share = curve_value(self.curve, self.done / self.ticks, self.steepness)
        value = self.start + (self.target - self.start) * share
        # Rounding may carry the sum one bit past an end.
        return min(max(value, min(self.start, self.target)), max(self.start, self.target))

    @property
    def mode(self) -> AlphaMode:
        """HOLD once the ramp is over, before that its direction."""
        if self.done == self.ticks:
            return AlphaMode.HOLD
        return AlphaMode.UP if self.target > self.start else AlphaMode.DOWN

    @property
    def ticks_left(self) -> int:
        """Ticks until alpha is at its target; 0 when it holds."""
        return self.ticks - self.done

    def tick(self) -> "AlphaController":
        """One step along the ramp; the last one lands on the target itself. Without a ramp, the same."""
        return self if self.done == self.ticks else replace(self, done=self.done + 1)

    def after(self, ticks: int) -> "AlphaController":
        """What `ticks` ticks lead to."""
        done = min(self.ticks, self.done + ticks)
        return self if done == self.done else replace(self, done=done)

    def retarget(self, target: float, ticks: int, curve: AlphaCurve | None = None) -> "AlphaController":
        """Start a ramp from the present alpha to `target` over `ticks` ticks; 0 ticks: at once.

        Raises AlphaNotHolding while a ramp is under way, ConfigError for a target outside of [0, 1] or
        negative ticks.
        """
        if self.mode is not AlphaMode.HOLD:
            raise AlphaNotHolding(self.alpha, self.target, self.ticks_left)
        return self._ramp(target, ticks, self.curve if curve is None else curve)

    def retreat(self, ticks: int) -> "AlphaController":
        """Leave any ramp under way and go from the present alpha to 0 over `ticks` ticks; 0: at once."""
        return self._ramp(0.0, ticks, self.curve)

    def _ramp(self, target: float, ticks: int, curve: AlphaCurve) -> "AlphaController":
        start = self.alpha
        # A ramp to where alpha already is would have no direction, so it is over at once.
        length = 0 if target == start else ticks
        check_int("alpha.ticks", ticks, 0)
        return AlphaController(start, target, length, 0, curve, self.steepness)

    def to_dict(self) -> dict[str, float | int | str]:
        """Plain values that `from_dict` takes back."""
        return {
            "start": self.start,
            "target": self.target,
            "ticks": self.ticks,
            "done": self.done,
            "curve": self.curve.value,
            "steepness": self.steepness,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, object]) -> "AlphaController":
        """The controller that `to_dict` described. Raises BadState for missing or unusable values."""
        names = ("start", "target", "ticks", "done", "curve", "steepness")
        if set(state) != set(names):
            raise BadState("alpha", sorted(state), f"a mapping with exactly the keys {', '.join(names)}")
        start, target, ticks, done, curve, steepness = (state[name] for name in names)
        try:
            return cls(
                start=check_number("alpha.start", start, 0.0, 1.0),
                target=check_number("alpha.target", target, 0.0, 1.0),
                ticks=check_int("alpha.ticks", ticks, 0),
                done=check_int("alpha.done", done, 0),
                curve=AlphaCurve(str(curve)),
                steepness=check_steepness("alpha.steepness", steepness),
            )
        except ConfigError as error:
            raise BadState(error.key, error.value, error.accepted) from None
        except ValueError:
            raise BadState("alpha.curve", curve, f"one of {', '.join(AlphaCurve)}") from None


def check_steepness(key: str, value: object) -> float:
    """`value` as the sigmoid's k. Raises ConfigError naming `key` unless it is a finite number above 0."""
    if check_number(key, value) <= 0.0:
        raise ConfigError(key, value, "a finite number above 0")
    return check_number(key, value)
