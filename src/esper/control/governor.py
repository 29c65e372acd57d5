"""The emergency brake: when a run's loss says that the model is being destroyed."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from esper.checks import check_int, check_number
from esper.errors import BadState


class Alarm(Enum):
    """What a loss says about the run."""

    CALM = "nothing unusual"
    SPIKE = "far above what is usual, not yet for long"
    NOT_FINITE = "the loss is not a number"
    LOBOTOMY = "the loss is that of guessing, after the model knew better"
    EXPLOSION = "the loss has been far above what is usual for too long"

    @property
    def panic(self) -> bool:
        """Whether the run has to go back to its last good state."""
        return self not in (Alarm.CALM, Alarm.SPIKE)


@dataclass(frozen=True, slots=True)
class GovernorConfig:
    """Thresholds of the governor, of the mean training loss of an epoch."""

    enabled: bool = True
    window: int = 20  # losses that say what is usual
    guess_loss: float = math.log(10)  # of a model that guesses: the logarithm of the number of classes
    guess_band: float = 0.065  # how near to it, as a share, is guessing
    known_share: float = 0.6  # a mean below this share of it is knowing better
    spike_loss: float = 12.0  # a spike is above all three of these
    spike_sigmas: float = 6.0
    spike_factor: float = 3.0
    spikes: int = 3  # in a row
    max_rollbacks: int = 3  # in a row; one more ends the run

    def __post_init__(self) -> None:
        check_int("governor.window", self.window, 2)
        check_int("governor.spikes", self.spikes, 1)
        check_int("governor.max_rollbacks", self.max_rollbacks, 0)
        for name in ("guess_loss", "spike_loss", "spike_sigmas", "spike_factor"):
            check_number(f"governor.{name}", getattr(self, name), 0.0)
        for name in ("guess_band", "known_share"):
            check_number(f"governor.{name}", getattr(self, name), 0.0, 1.0)


@dataclass
class Governor:
    """Judges losses by those before. `judge` changes nothing; `learn` is told what all ranks agreed on."""

    config: GovernorConfig = field(default_factory=GovernorConfig)
    rollbacks: int = field(default=0, init=False)  # in a row
    _losses: tuple[float, ...] = field(default=(), init=False)
    _spikes: int = field(default=0, init=False)

    def judge(self, loss: float) -> Alarm:
        """What this epoch's loss says."""
        config = self.config
        if not config.enabled:
            return Alarm.CALM
        if not math.isfinite(loss):
            return Alarm.NOT_FINITE
        if not self._losses:
            return Alarm.CALM
        mean = statistics.fmean(self._losses)
        guess = config.guess_loss
        if abs(loss - guess) <= config.guess_band * guess and mean < config.known_share * guess:
            return Alarm.LOBOTOMY
        if loss <= max(config.spike_loss, config.spike_factor * mean):
            return Alarm.CALM
        # Asked for last: at 0.1 ms an exact deviation costs more than the rest of an epoch's judging.
        if loss <= mean + config.spike_sigmas * statistics.pstdev(self._losses):
            return Alarm.CALM
        return Alarm.EXPLOSION if self._spikes + 1 >= config.spikes else Alarm.SPIKE

    def learn(self, loss: float, *, panicked: bool) -> None:
        """Count an epoch by its agreed loss. What is not calm does not become usual."""
        if panicked:
            self.rollbacks += 1
            self._spikes = 0
            return
        self.rollbacks = 0
        alarm = self.judge(loss)
        self._spikes = self._spikes + 1 if alarm is Alarm.SPIKE else 0
        if alarm is Alarm.CALM and math.isfinite(loss):
            self._losses = (*self._losses, loss)[-self.config.window :]

    def state_dict(self) -> dict[str, object]:
        """Plain values that `load_state_dict` takes back."""
        return {"losses": list(self._losses), "spikes": self._spikes, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a saved state. Raises BadState, and stays as it is, for anything else."""
        losses, counts = state.get("losses"), (state.get("spikes"), state.get("rollbacks"))
        if not isinstance(losses, (list, tuple)) or not all(isinstance(loss, float) for loss in losses):
            raise BadState("governor.losses", losses, "a list of floats")
        spikes, rollbacks = counts
        for name, count in (("spikes", spikes), ("rollbacks", rollbacks)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise BadState(f"governor.{name}", count, "an int of at least 0")
        assert isinstance(spikes, int)
        assert isinstance(rollbacks, int)
        self._losses, self._spikes, self.rollbacks = tuple(losses), spikes, rollbacks
