"""What ranks say when they are not alike."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import pytest

from esper.distributed.divergence import compare, divergent_ranks
from esper.distributed.rows import AgreementRecord, GrowthRecord, GrowthStep
from esper.errors import AgreementDeadline, LifecycleDivergence, LoaderMismatch
from esper.lifecycle.config import Blend
from esper.lifecycle.metrics import MetricSums, SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage
from esper.lockstep import DivergenceError, FieldDifference
from tests.esper.distributed.records import agreement_record, in_stage, slot_record

# What ranks measure for themselves.
OWN = {"next_batches", "panic", "stop", "random_bits", "train", "test", "measurements"}
OTHER: dict[str, Any] = {"stage": Stage.HOLDING, "blueprint": "other", "alpha": 0.25, "slot_id": "r9c9"}
OTHER |= {"blend": Blend.GATE}


def _raised(*records: AgreementRecord | GrowthRecord) -> LifecycleDivergence:
    with pytest.raises(LifecycleDivergence) as raised:
        compare(dict(enumerate(records)), "the agreement of epoch 7")
    return raised.value


def test_ranks_that_are_alike_may_have_measured_differently() -> None:
    other = agreement_record(
        next_batches=3,
        panic=True,
        stop=True,
        random_bits=1,
        train=MetricSums(1.0, 2, 3),
        test=MetricSums(),
        measurements=(SlotMeasurement(1.0), SlotMeasurement()),
    )
    compare({0: agreement_record(), 1: other}, "the agreement of epoch 7")


@pytest.mark.parametrize(
    "name", sorted({each.name for each in fields(AgreementRecord)} - OWN - {"slots", "kind"})
)
def test_every_field_of_a_rank_is_compared(name: str) -> None:
    record = agreement_record()
    error = _raised(record, record, replace(record, **{name: getattr(record, name) + 1}))
    assert error.guilty == (2,)
    assert len(error.fields) == 1


@pytest.mark.parametrize("name", [each.name for each in fields(SlotRecord)])
def test_every_field_of_a_slot_is_compared(name: str) -> None:
    record = agreement_record()
    value = OTHER.get(name, 2)
    other = replace(record, slots=(record.slots[0], replace(record.slots[1], **{name: value})))
    error = _raised(other, record, record)
    assert error.guilty == (0,)
    assert len(error.fields) == 1


def test_the_stage_leads_and_what_follows_from_it_is_listed() -> None:
    odd = replace(in_stage(Stage.GERMINATED), fingerprint=99, previous_decision=17)
    usual = in_stage(Stage.TRAINING)
    error = _raised(usual, usual, odd, usual)
    assert str(error) == (
        "ranks disagree in the agreement of epoch 7: "
        "stage of r0c1: TRAINING on ranks 0, 1, 3; GERMINATED on rank 2\n"
        "also different:\n"
        "  previous decision: 0 on ranks 0, 1, 3; 11 on rank 2\n"
        "  model fingerprint: 4 on ranks 0, 1, 3; 63 on rank 2"
    )
    assert error.kind == "lifecycle"
    assert error.fields[0] == FieldDifference(
        "stage of r0c1", ((0, "TRAINING"), (1, "TRAINING"), (2, "GERMINATED"), (3, "TRAINING"))
    )


def test_slots_in_another_order_are_the_only_thing_said() -> None:
    record = agreement_record()
    error = _raised(record, record, replace(record, slots=record.slots[::-1]))
    assert [difference.field for difference in error.fields] == ["slots"]
    assert "slots: r0c0, r0c1 on ranks 0, 1; r0c1, r0c0 on rank 2" in str(error)


def test_many_differences_are_counted_not_all_shown() -> None:
    record = agreement_record(slots=tuple(slot_record(f"r0c{i}") for i in range(16)))
    other = replace(record, slots=tuple(replace(slot, birth=5) for slot in record.slots))
    error = _raised(record, other)
    assert len(error.fields) == 16
    assert str(error).endswith("and 4 more fields")


@pytest.mark.parametrize(
    ("texts", "guilty"),
    [
        ("aab", (2,)),
        ("abb", (0,)),
        ("ab", (0, 1)),
        ("aabb", (0, 1, 2, 3)),
        ("aabc", (2, 3)),
        ("abc", (0, 1, 2)),
    ],
)
def test_the_minority_is_guilty_and_without_one_all_are(texts: str, guilty: tuple[int, ...]) -> None:
    assert divergent_ranks(FieldDifference("x", tuple(enumerate(texts)))) == guilty


def test_growth_compares_decision_gate_seed_and_error() -> None:
    step = GrowthStep(slot_id="r0c0", action="germinate", blueprint="norm", gate_passed=True, fingerprint=5)
    growth = GrowthRecord(run_id=1, epoch=7, decision=9, steps=(step,))
    for change in (
        {"blueprint": "conv_light"},
        {"manner": "by gate"},
        {"gate_passed": False},
        {"fingerprint": 6},
        {"error": "MemoryError: no room"},
        {"action": "prune"},
        {"slot_id": "r0c1"},
    ):
        assert _raised(growth, growth, replace(growth, steps=(replace(step, **change),))).guilty == (2,)
    assert _raised(growth, growth, replace(growth, decision=10)).guilty == (2,)


@pytest.mark.parametrize(
    "error",
    [
        LifecycleDivergence("text", guilty=(2,), fields=(FieldDifference("x", ((0, "a"),)),)),
        LoaderMismatch("text", guilty=(0, 1), fields=()),
        AgreementDeadline("text", guilty=(3,)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes_whole(error: DivergenceError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.kind, copy.guilty, copy.fields) == (
        str(error),
        error.kind,
        error.guilty,
        error.fields,
    )
