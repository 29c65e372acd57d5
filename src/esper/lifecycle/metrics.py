"""Numbers that gates and controllers read. None means "never measured", which is not 0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage

RATIO_CAP = 10.0
RATIO_DECAY = 0.9
VANISHING_NORM = 1e-7
EXPLODING_FACTOR = 10.0


@dataclass(frozen=True, slots=True)
class MetricSums:
    """What one rank contributes to the averages over ranks: sums and counts, so uneven shards weigh right."""

    loss_sum: float = 0.0  # over samples
    correct: int = 0
    samples: int = 0

    def __add__(self, other: "MetricSums") -> "MetricSums":
        return MetricSums(
            self.loss_sum + other.loss_sum, self.correct + other.correct, self.samples + other.samples
        )

    @property
    def loss(self) -> float:
        """Mean loss per sample; nan without samples."""
        return self.loss_sum / self.samples if self.samples else math.nan

    @property
    def accuracy(self) -> float:
        """Accuracy in points, 0 to 100; nan without samples."""
        return 100.0 * self.correct / self.samples if self.samples else math.nan


@dataclass(frozen=True, slots=True)
class SlotMeasurement:
    """What one rank measured for one slot in one epoch, or the mean of that over the ranks."""

    gradient_ratio: float | None = None
    gradient_health: float | None = None
    contribution: float | None = None  # points: accuracy(main) - accuracy(this slot off)
    exploding: bool = False


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return math.fsum(measured) / len(measured) if measured else None


def mean_measurement(rows: Sequence[SlotMeasurement]) -> SlotMeasurement:
    """Mean over ranks of one slot's measurements, the same bits whatever the order of `rows`.

    A value that only some ranks measured is the mean over those; one exploding rank makes the whole
    exploding.
    """
    return SlotMeasurement(
        gradient_ratio=_mean([row.gradient_ratio for row in rows]),
        gradient_health=_mean([row.gradient_health for row in rows]),
        contribution=_mean([row.contribution for row in rows]),
        exploding=any(row.exploding for row in rows),
    )


@dataclass(frozen=True, slots=True)
class GradientStats:
    """One reading of the gradients after a backward pass; the seed's norms are one per parameter tensor."""

    host_norm: float
    seed_norms: tuple[float, ...]
    host_parameters: int
    seed_parameters: int

    def ratio(self) -> float:
        """(|g_seed| / |g_host|) * sqrt(P_host / P_seed), in [0, 10]; 0 if it is not a number."""
        seed_norm = math.hypot(*self.seed_norms)
        if not (math.isfinite(seed_norm) and math.isfinite(self.host_norm)) or seed_norm == 0.0:
            return 0.0
        if self.host_norm == 0.0:
            return RATIO_CAP
        scale = math.sqrt(self.host_parameters / self.seed_parameters)
        return min(RATIO_CAP, seed_norm / self.host_norm * scale)

    def health(self, clip: float) -> float:
        """1 - 0.5 * fraction vanishing - 0.8 * fraction exploding, in [0, 1]; 0 if a norm is not finite.

        `clip` is the gradient norm to which the training clips, or would.
        """
        if not self.seed_norms or not all(map(math.isfinite, self.seed_norms)):
            return 0.0
        count = len(self.seed_norms)
        vanishing = sum(norm < VANISHING_NORM for norm in self.seed_norms) / count
        exploding = sum(norm > EXPLODING_FACTOR * clip for norm in self.seed_norms) / count
        return min(1.0, max(0.0, 1.0 - 0.5 * vanishing - 0.8 * exploding))

    def exploding(self, clip: float) -> bool:
        """Whether any of the seed's norms is above ten times `clip`, or not finite."""
        return any(not norm <= EXPLODING_FACTOR * clip for norm in self.seed_norms)


@dataclass(frozen=True, slots=True)
class GradientTrend:
    """Readings of one seed folded together: the ratio as a moving average, the rest as last seen."""

    ratio: float | None = None
    health: float | None = None
    exploding: bool = False

    def updated(self, stats: GradientStats, clip: float) -> "GradientTrend":
        """The trend after one more reading; the first reading starts the average."""
        ratio = stats.ratio()
        if self.ratio is not None:
            ratio = RATIO_DECAY * self.ratio + (1.0 - RATIO_DECAY) * ratio
        return GradientTrend(ratio, stats.health(clip), stats.exploding(clip))


@dataclass(frozen=True, slots=True)
class SlotMetrics:
    """Everything gates read about one slot. Accuracy differences are in points."""

    stage: Stage
    epochs_in_stage: int
    alpha: float
    alpha_target: float
    alpha_mode: AlphaMode
    improvement: float | None = None  # accuracy now - accuracy when the stage was entered
    gradient_ratio: float | None = None
    gradient_health: float | None = None
    exploding: bool = False
    contribution: float | None = None
    blueprint_known: bool | None = None  # of the seed about to germinate
    shape_preserved: bool | None = None

    @classmethod
    def of(cls, record: SlotRecord, measurement: SlotMeasurement, improvement: float | None) -> "SlotMetrics":
        """The metrics of a slot from what the ranks agreed on."""
        return cls(
            stage=record.stage,
            epochs_in_stage=record.epochs_in_stage,
            alpha=record.alpha,
            alpha_target=record.alpha_target,
            alpha_mode=AlphaMode(record.alpha_mode),
            improvement=improvement,
            gradient_ratio=measurement.gradient_ratio,
            gradient_health=measurement.gradient_health,
            exploding=measurement.exploding,
            contribution=measurement.contribution,
        )
