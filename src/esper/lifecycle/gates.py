"""The checks before each step of a seed's life: pure functions of the slot's rank-averaged metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from esper.checks import check_int, check_number
from esper.errors import ConfigError, UnguardedStage
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.metrics import SlotMetrics
from esper.lifecycle.stage import Stage

GATES: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.GERMINATED: "G0",
        Stage.TRAINING: "G1",
        Stage.BLENDING: "G2",
        Stage.HOLDING: "G3",
        Stage.FOSSILIZED: "G5",
    }
)


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Thresholds of all gates. Improvement and contribution in points.

    G2 asks for improvement, which in TRAINING can only be the host's own: the seed does not show in the
    output yet. A host on a plateau, which is where seeds germinate, may have none left. So from
    `max_training_epochs` on it is not asked for, and the seed's health is instead; its check then says so.
    What a seed is worth is G5's question.
    """

    permissive: bool = False
    min_improvement: float = 0.5
    min_training_epochs: int = 10
    max_training_epochs: int = 20
    min_gradient_ratio: float = 0.10
    min_gradient_health: float = 0.7
    min_blending_epochs: int = 10
    min_contribution: float = 1.0
    full_improvement: float = 5.0  # improvement at which G2 scores 1
    full_contribution: float = 10.0  # contribution at which G5 scores 1

    def __post_init__(self) -> None:
        """Raises ConfigError: a threshold of nan would fail every gate, and one of inf for ever."""
        for name in ("min_training_epochs", "max_training_epochs", "min_blending_epochs"):
            check_int(f"gates.{name}", getattr(self, name), 0)
        if self.max_training_epochs < self.min_training_epochs:
            accepted = f"at least gates.min_training_epochs, {self.min_training_epochs}"
            raise ConfigError("gates.max_training_epochs", self.max_training_epochs, accepted)
        for name in ("min_improvement", "min_gradient_ratio", "min_gradient_health", "min_contribution"):
            check_number(f"gates.{name}", getattr(self, name))
        for name in ("full_improvement", "full_contribution"):
            if check_number(f"gates.{name}", getattr(self, name)) <= 0.0:
                raise ConfigError(f"gates.{name}", getattr(self, name), "a finite number above 0")


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One condition of a gate; `found` says what was measured and what was asked for."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """A gate passes when all its checks do; the score, in [0, 1], says how clearly."""

    gate: str
    passed: bool
    score: float
    checks: tuple[GateCheck, ...]

    @property
    def failed(self) -> tuple[GateCheck, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def __str__(self) -> str:
        if self.passed:
            return f"{self.gate} passed, score {self.score:.2f}"
        return f"{self.gate} failed: " + "; ".join(f"{check.name} {check.found}" for check in self.failed)


def evaluate_gate(target: Stage, metrics: SlotMetrics, config: GateConfig) -> GateVerdict:
    """The verdict on entering `target` from where `metrics` says the slot is.

    Raises UnguardedStage when no gate guards `target`.
    """
    if target not in GATES:
        raise UnguardedStage(target.name, tuple(stage.name for stage in GATES))
    checks = _CHECKS[target](metrics, config)
    passed = all(check.passed for check in checks)
    return GateVerdict(GATES[target], passed, _score(target, passed, metrics, config), checks)


def _at_least(name: str, value: float | None, least: float) -> GateCheck:
    if value is None:
        return GateCheck(name, False, "never measured")
    # A nan compares false, so it fails like a value that is too small.
    return GateCheck(name, value >= least, f"{value:.6g}, needs at least {least:.6g}")


def _is_true(name: str, value: bool | None) -> GateCheck:
    return GateCheck(name, value is True, "never measured" if value is None else str(value).lower())


def _germination(metrics: SlotMetrics, config: GateConfig) -> tuple[GateCheck, ...]:
    return (
        _is_true("blueprint_known", metrics.blueprint_known),
        _is_true("shape_preserved", metrics.shape_preserved),
    )


def _training(metrics: SlotMetrics, config: GateConfig) -> tuple[GateCheck, ...]:
    return (GateCheck("stage", metrics.stage is Stage.GERMINATED, f"{metrics.stage.name}, needs GERMINATED"),)


def _blending(metrics: SlotMetrics, config: GateConfig) -> tuple[GateCheck, ...]:
    epochs = _at_least("epochs_in_stage", metrics.epochs_in_stage, config.min_training_epochs)
    if config.permissive:
        return (epochs, *_healthy(metrics, config))
    improvement = _at_least("improvement", metrics.improvement, config.min_improvement)
    ratio = _at_least("gradient_ratio", metrics.gradient_ratio, config.min_gradient_ratio)
    if improvement.passed or metrics.epochs_in_stage < config.max_training_epochs:
        return (improvement, epochs, ratio)
    found = f"{improvement.found}; not asked for from epoch {config.max_training_epochs} in the stage on"
    return (GateCheck("improvement", True, found), epochs, ratio, *_healthy(metrics, config))


def _holding(metrics: SlotMetrics, config: GateConfig) -> tuple[GateCheck, ...]:
    arrived = metrics.alpha_mode is AlphaMode.HOLD and metrics.alpha == metrics.alpha_target > 0.0
    target = f"its target {metrics.alpha_target:.6g} > 0"
    found = f"{metrics.alpha_mode.name} at {metrics.alpha:.6g}, needs HOLD at {target}"
    alpha = GateCheck("alpha_holds", arrived, found)
    if config.permissive:
        return (alpha,)
    return (alpha, _at_least("epochs_in_stage", metrics.epochs_in_stage, config.min_blending_epochs))


def _fossilising(metrics: SlotMetrics, config: GateConfig) -> tuple[GateCheck, ...]:
    least = -math.inf if config.permissive else config.min_contribution
    return (_at_least("contribution", metrics.contribution, least), *_healthy(metrics, config))


def _healthy(metrics: SlotMetrics, config: GateConfig) -> tuple[GateCheck, ...]:
    return (
        _at_least("gradient_health", metrics.gradient_health, config.min_gradient_health),
        GateCheck("not_exploding", not metrics.exploding, f"exploding is {str(metrics.exploding).lower()}"),
    )


_CHECKS = MappingProxyType(
    {
        Stage.GERMINATED: _germination,
        Stage.TRAINING: _training,
        Stage.BLENDING: _blending,
        Stage.HOLDING: _holding,
        Stage.FOSSILIZED: _fossilising,
    }
)


def _score(target: Stage, passed: bool, metrics: SlotMetrics, config: GateConfig) -> float:
    if target is Stage.BLENDING:
        return _share(metrics.improvement, config.full_improvement)
    if target is Stage.HOLDING:
        return _share(metrics.alpha, 1.0)
    if target is Stage.FOSSILIZED:
        return _share(metrics.contribution, config.full_contribution)
    return float(passed)


def _share(value: float | None, full: float) -> float:
    if value is None or math.isnan(value):
        return 0.0
    return min(1.0, max(0.0, value / full))
