"""What a controller sees follows from agreed numbers alone."""

import pytest

from esper.control import EpochSignals, gate_for
from esper.errors import IllegalTransition, UnguardedStage
from esper.lifecycle import GateConfig, SlotMeasurement, SlotRecord, Stage


def record(stage: Stage, epochs: int = 0) -> SlotRecord:
    return SlotRecord("r0c0", stage, None, 0, epochs, 0.0, 0.0, 0, 0)


def signals(stage: Stage, epochs: int, accuracies: list[float]) -> EpochSignals:
    losses = [1.0] * len(accuracies)
    return EpochSignals.of(7, losses, accuracies, [record(stage, epochs)], [SlotMeasurement(1.5, 0.9, 2.0)])


def test_the_epoch_itself_is_the_end_of_the_histories() -> None:
    seen = EpochSignals.of(2, [3.0, 2.0], [50.0, 40.0], [], [])
    assert (seen.epoch, seen.train_loss, seen.accuracy, seen.best_accuracy) == (2, 2.0, 40.0, 50.0)


@pytest.mark.parametrize(("epochs", "improvement"), [(0, 0.0), (1, 4.0), (2, 3.0), (3, None)])
def test_improvement_is_since_the_evaluation_before_the_stage(epochs: int, improvement: float | None) -> None:
    (view,) = signals(Stage.TRAINING, epochs, [60.0, 59.0, 63.0]).slots
    assert view.improvement == improvement


def test_metrics_are_made_of_record_and_measurement() -> None:
    (view,) = signals(Stage.TRAINING, 1, [60.0, 62.0]).slots
    metrics = view.metrics
    assert (metrics.stage, metrics.epochs_in_stage, metrics.improvement) == (Stage.TRAINING, 1, 2.0)
    assert (metrics.gradient_ratio, metrics.gradient_health, metrics.contribution) == (1.5, 0.9, 2.0)
    assert metrics.blueprint_known is None


def test_records_without_their_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        EpochSignals.of(0, [1.0], [1.0], [record(Stage.DORMANT)], [])


@pytest.mark.parametrize(
    ("stage", "gate"),
    [
        (Stage.DORMANT, "G0"),
        (Stage.GERMINATED, "G1"),
        (Stage.TRAINING, "G2"),
        (Stage.BLENDING, "G3"),
        (Stage.HOLDING, "G5"),
    ],
)
def test_the_gate_before_the_next_stage(stage: Stage, gate: str) -> None:
    (view,) = signals(stage, 1, [60.0, 62.0]).slots
    assert gate_for(view, GateConfig()).gate == gate


def test_no_gate_leads_out_of_a_fossil_or_a_cooldown() -> None:
    (fossil,) = signals(Stage.FOSSILIZED, 1, [60.0]).slots
    with pytest.raises(IllegalTransition, match="terminal"):
        gate_for(fossil, GateConfig())
    (pruned,) = signals(Stage.PRUNED, 1, [60.0]).slots
    with pytest.raises(UnguardedStage):
        gate_for(pruned, GateConfig())
