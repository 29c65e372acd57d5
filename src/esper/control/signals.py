"""What a controller sees of an epoch. Built from agreed numbers only, so that every rank decides alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from esper.errors import IllegalTransition
from esper.lifecycle.gates import GateConfig, GateVerdict, evaluate_gate
from esper.lifecycle.metrics import SlotMeasurement, SlotMetrics
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import next_stage


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot in one epoch: its agreed state, its averaged measurements and, from both, what gates read."""

    record: SlotRecord
    measurement: SlotMeasurement
    improvement: float | None  # points since the present stage was entered

    @property
    def metrics(self) -> SlotMetrics:
        """What the gates read."""
        return SlotMetrics.of(self.record, self.measurement, self.improvement)


@dataclass(frozen=True, slots=True)
class EpochSignals:
    """One epoch as a controller sees it. Histories end with this epoch, oldest first; accuracy in points.

    A controller that draws seeds its generator with `random_bits`, 64 bits that are the same on every rank
    and others in each epoch; one that drew from a rank's own generator would decide otherwise there.
    """

    epoch: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    slots: tuple[SlotView, ...]  # forward order
    random_bits: int = 0

    @classmethod
    def of(
        cls,
        epoch: int,
        losses: Sequence[float],
        accuracies: Sequence[float],
        records: Sequence[SlotRecord],
        measurements: Sequence[SlotMeasurement],
        random_bits: int = 0,
    ) -> "EpochSignals":
        """Signals from the agreed histories and, in forward order, the slots' records and mean measurements.

        Raises ValueError when there are not as many measurements as records.
        """
        views = tuple(
            SlotView(record, measurement, _improvement(accuracies, record.epochs_in_stage))
            for record, measurement in zip(records, measurements, strict=True)
        )
        return cls(epoch, tuple(losses), tuple(accuracies), views, random_bits)

    @property
    def train_loss(self) -> float:
        """Mean training loss of this epoch."""
        return self.losses[-1]

    @property
    def accuracy(self) -> float:
        """Accuracy of this epoch, in points."""
        return self.accuracies[-1]

    @property
    def best_accuracy(self) -> float:
        """Best accuracy so far, this epoch included, in points."""
        return max(self.accuracies)


def _improvement(accuracies: Sequence[float], epochs_in_stage: int) -> float | None:
    # A stage entered n epochs ago was entered after that epoch's evaluation, which is the baseline. Without
    # one (a history that starts later) the improvement was never measured.
    if epochs_in_stage >= len(accuracies):
        return None
    return accuracies[-1] - accuracies[-1 - epochs_in_stage]


def gate_for(view: SlotView, config: GateConfig) -> GateVerdict:
    """Verdict of the gate before the slot's next stage.

    Raises IllegalTransition for a FOSSILIZED slot and UnguardedStage for one in cooldown.
    """
    record = view.record
    target = next_stage(record.stage)
    if target is None:
        raise IllegalTransition(record.slot_id, record.stage.name, "advance", "the stage is terminal")
    return evaluate_gate(target, view.metrics, config)
