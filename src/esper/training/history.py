"""What happened in a run, epoch by epoch: plain values that print, compare and pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from esper.control.actions import Decision
from esper.distributed.divergence import ranks_text
from esper.errors import BadState
from esper.lifecycle.gates import GateVerdict
from esper.lifecycle.metrics import SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.training.plain import from_plain, to_plain

HEADER = f"{'epoch':>5} {'loss':>9} {'accuracy':>8} {'seconds':>7}  slots"


@dataclass(frozen=True, slots=True)
class Dissent:
    """A gate's verdict on agreed numbers, and the ranks whose own numbers would have led to another."""

    slot_id: str
    gate: str
    passed: bool
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        verdict, other = ("passed", "failed") if self.passed else ("failed", "passed")
        who = ranks_text(self.ranks)
        return f"{self.gate} of {self.slot_id} {verdict}; by the own numbers of {who} it would have {other}"


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
    panicking: tuple[int, ...] = ()  # ranks by which the epoch was undone
    dissent: tuple[Dissent, ...] = ()  # verdicts that single ranks would not have come to

    def same_as(self, other: EpochResult) -> bool:
        """Whether both say the same of everything but time; a loss of nan is the same as itself."""
        return repr(replace(self, seconds=0.0)) == repr(replace(other, seconds=0.0))

    def line(self) -> str:
        """One line for a table under `HEADER`."""
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

    @property
    def dissents(self) -> int:
        """How many times a rank's own numbers would have led to another verdict of a gate."""
        return sum(len(each.ranks) for epoch in self.epochs for each in epoch.dissent)

    def same_as(self, other: History) -> bool:
        """Whether two runs went the same way, bit for bit, whatever time they took."""
        return (
            self.final == other.final
            and len(self.epochs) == len(other.epochs)
            and all(mine.same_as(theirs) for mine, theirs in zip(self.epochs, other.epochs, strict=True))
        )

    def to_json(self) -> str:
        """The run's log: text that `from_json` takes back. A nan is written as NaN, as Python does."""
        return json.dumps(to_plain(self))

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history that `to_json` wrote. Raises BadState, naming the place, for anything else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise BadState("history", text[:60], f"JSON ({error})") from None
        return from_plain(cls, values, "history")

    def table(self) -> str:
        """A line an epoch, under a header."""
        return "\n".join([HEADER, *(result.line() for result in self.epochs)])


def _slot_text(record: SlotRecord) -> str:
    if record.blueprint is None:
        return f"{record.slot_id} {record.stage.name}"
    return f"{record.slot_id} {record.stage.name} {record.blueprint} {record.alpha:.2f}"
