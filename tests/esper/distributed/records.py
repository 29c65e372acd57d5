"""Rows as ranks send them, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from esper.distributed.rows import AgreementRecord
from esper.lifecycle.config import Blend
from esper.lifecycle.metrics import MetricSums, SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage


def slot_record(slot_id: str = "r0c0", **changes: Any) -> SlotRecord:
    """A dormant slot, with `changes`."""
    return replace(SlotRecord(slot_id, Stage.DORMANT, None, 0, 1, 0.0, 0.0, 0, 0), **changes)


def agreement_record(**changes: Any) -> AgreementRecord:
    """A two-slot record of epoch 7, with `changes`."""
    record = AgreementRecord(
        run_id=1,
        config_digest=2,
        epoch=7,
        steps=70,
        slots=(
            slot_record("r0c0"),
            slot_record("r0c1", stage=Stage.TRAINING, blueprint="norm", birth=1, blend=Blend.ADD),
        ),
        growth_rng=3,
        fingerprint=4,
        next_batches=11,
        random_bits=2**63 + 5,
        train=MetricSums(10.0, 30, 40),
        test=MetricSums(5.0, 15, 20),
        measurements=(SlotMeasurement(), SlotMeasurement(0.5, 1.0, 2.0)),
    )
    return replace(record, **changes)


def in_stage(stage: Stage) -> AgreementRecord:
    """The record with slot r0c1 in `stage`."""
    record = agreement_record()
    return replace(record, slots=(record.slots[0], replace(record.slots[1], stage=stage)))
