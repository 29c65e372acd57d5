"""What was done to a network in an epoch, and why, in words."""

from __future__ import annotations

from esper.control.actions import Advance, Germinate, SetAlpha
from esper.training.history import EpochResult


def deeds(result: EpochResult) -> list[str]:
    """A phrase for each action of the epoch's decision, with the gate's verdict or what was measured, and
    what the controller says of it.
    """
    if result.panicking:
        return [
            f"undone: the loss of rank {', '.join(map(str, result.panicking))} says that it was destroyed"
        ]
    verdicts = dict(result.verdicts)
    records = {record.slot_id: record for record in result.records}
    measured = dict(zip(records, result.measurements, strict=True))
    told = []
    reasons = result.decision.reasons or ("",) * len(result.decision.actions)
    for action, reason in zip(result.decision.actions, reasons, strict=True):
        slot_id = action.slot_id
        if isinstance(action, Germinate):
            told.append(f"{slot_id}: {_words('germinate', action.blueprint, action.manner)}")
        elif isinstance(action, Advance):
            told.append(
                f"{slot_id}: advance from {records[slot_id].stage.name}, {verdicts.get(slot_id, 'no gate')}"
            )
        elif isinstance(action, SetAlpha):
            told.append(f"{slot_id}: alpha {action.manner}")
        else:
            record, measurement = records[slot_id], measured[slot_id]
            contribution = measurement.contribution
            worth = "never measured" if contribution is None else f"{contribution:+.2f} points"
            # What is not mixed in leaves at once, whatever the tempo.
            prune = _words("prune", str(record.blueprint), action.manner if record.alpha else "")
            told.append(
                f"{slot_id}: {prune} in epoch {record.epochs_in_stage} of {record.stage.name}, "
                f"contribution {worth}"
            )
        if reason:
            told[-1] += f" ({reason})"
    return told


def _words(*words: str) -> str:
    return " ".join(filter(None, words))
