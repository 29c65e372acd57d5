"""What was done to a network in an epoch, and why, in words."""

from __future__ import annotations

from esper.control.actions import Advance, Germinate
from esper.training.history import EpochResult


def deeds(result: EpochResult) -> list[str]:
    """A phrase for each action of the epoch's decision, with the gate's verdict or what was measured."""
    if result.panicking:
        return [
            f"undone: the loss of rank {', '.join(map(str, result.panicking))} says that it was destroyed"
        ]
    verdicts = dict(result.verdicts)
    records = {record.slot_id: record for record in result.records}
    measured = dict(zip(records, result.measurements, strict=True))
    told = []
    for action in result.decision.actions:
        slot_id = action.slot_id
        if isinstance(action, Germinate):
            told.append(f"{slot_id}: germinate {action.blueprint}")
        elif isinstance(action, Advance):
            told.append(
                f"{slot_id}: advance from {records[slot_id].stage.name}, {verdicts.get(slot_id, 'no gate')}"
            )
        else:
            record, measurement = records[slot_id], measured[slot_id]
            contribution = measurement.contribution
            worth = "never measured" if contribution is None else f"{contribution:+.2f} points"
            told.append(
                f"{slot_id}: prune {record.blueprint} in epoch {record.epochs_in_stage} of "
                f"{record.stage.name}, contribution {worth}"
            )
    return told
