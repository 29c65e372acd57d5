"""What happened in a run, epoch by epoch: plain values that print, compare and pickle."""

from __future__ import annotations

from dataclasses import dataclass

from esper.control.actions import Decision
from esper.lifecycle.gates import GateVerdict
from esper.lifecycle.metrics import SlotMeasurement
from esper.lifecycle.record import SlotRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """One epoch as all ranks agreed on it. `seconds` is this rank's own."""

    epoch: int
    loss: float  # mean over the training samples
    accuracy: float  # points, on the data for evaluation
    records: tuple[SlotRecord, ...]  # before the decision
    measurements: tuple[SlotMeasurement, ...]
    decision: Decision
    verdicts: tuple[tuple[str, GateVerdict], ...]  # (slot id, verdict of the gate asked)
    fingerprint: int  # of the model, before the decision
    seconds: float

    def same_as(self, other: EpochResult) -> bool:
        """Whether both say the same of everything but time."""
        return all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__ if name != "seconds"
        )

    def line(self) -> str:
        """One line for a table under `History.HEADER`."""
        slots = "  ".join(_slot_text(record) for record in self.records)
        return f"{self.epoch:>5} {self.loss:>9.4f} {self.accuracy:>8.2f} {self.seconds:>7.2f}  {slots}"


@dataclass(frozen=True, slots=True)
class History:
    """The epochs of a run, oldest first, and the slots as the last decision left them."""

    epochs: tuple[EpochResult, ...] = ()
    final: tuple[SlotRecord, ...] = ()

    @property
    def accuracy(self) -> float:
        """Accuracy of the last epoch, in points; nan without epochs."""
        return self.epochs[-1].accuracy if self.epochs else float("nan")

    def same_as(self, other: History) -> bool:
        """Whether two runs went the same way, bit for bit, whatever time they took."""
        return (
            self.final == other.final
            and len(self.epochs) == len(other.epochs)
            and all(mine.same_as(theirs) for mine, theirs in zip(self.epochs, other.epochs, strict=True))
        )

    def table(self) -> str:
        """A line an epoch, under a header."""
        header = f"{'epoch':>5} {'loss':>9} {'accuracy':>8} {'seconds':>7}  slots"
        return "\n".join([header, *(result.line() for result in self.epochs)])


def _slot_text(record: SlotRecord) -> str:
    if record.blueprint is None:
        return f"{record.slot_id} {record.stage.name}"
    return f"{record.slot_id} {record.stage.name} {record.blueprint} {record.alpha:.2f}"
