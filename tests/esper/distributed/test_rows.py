"""Records to rows and back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.distributed.rows import (
    FORMAT_VERSION,
    NAME_BYTES,
    ROW_SLOTS,
    ROW_WORDS,
    AgreementRecord,
    GrowthRecord,
    GrowthStep,
    RowKind,
    decode,
    encode,
    kind_of,
    squeeze,
    version_of,
)
from esper.errors import TooManySlots
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.metrics import MetricSums, SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage
from tests.esper.distributed.records import agreement_record, slot_record

digests = st.integers(0, 2**63 - 1)
counts = st.integers(0, 2**40)
numbers = st.floats(allow_nan=False)  # nan differs from itself; its own test is below
names = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=NAME_BYTES)
sums = st.builds(MetricSums, numbers, counts, counts)
slots = st.builds(
    SlotRecord,
    slot_id=names,
    stage=st.sampled_from(Stage),
    blueprint=st.none() | names,
    birth=counts,
    epochs_in_stage=counts,
    alpha=numbers,
    alpha_target=numbers,
    alpha_mode=st.sampled_from(list(map(int, AlphaMode))),
    ticks_left=counts,
)
measurements = st.builds(
    SlotMeasurement, st.none() | numbers, st.none() | numbers, st.none() | numbers, st.booleans()
)


@st.composite
def agreement_records(draw: st.DrawFn) -> AgreementRecord:
    pairs = draw(st.lists(st.tuples(slots, measurements), max_size=ROW_SLOTS))
    return AgreementRecord(
        run_id=draw(digests),
        config_digest=draw(digests),
        epoch=draw(counts),
        steps=draw(counts),
        slots=tuple(slot for slot, _ in pairs),
        growth_rng=draw(digests),
        fingerprint=draw(digests),
        previous_decision=draw(digests),
        next_batches=draw(counts),
        compile_state=draw(counts),
        panic=draw(st.booleans()),
        random_bits=draw(st.integers(0, 2**64 - 1)),
        train=draw(sums),
        test=draw(sums),
        measurements=tuple(measured for _, measured in pairs),
    )


@st.composite
def growth_records(draw: st.DrawFn) -> GrowthRecord:
    steps = st.builds(
        GrowthStep,
        slot_id=names,
        action=names,
        blueprint=st.just("") | names,
        gate_passed=st.none() | st.booleans(),
        fingerprint=digests,
        error=st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=96),
    )
    return GrowthRecord(
        run_id=draw(digests),
        epoch=draw(counts),
        decision=draw(digests),
        steps=tuple(draw(st.lists(steps, max_size=ROW_SLOTS))),
    )


@given(agreement_records() | growth_records())
def test_a_row_has_one_size_and_comes_back_whole(record: AgreementRecord | GrowthRecord) -> None:
    row = encode(record)
    assert len(row) == ROW_WORDS
    assert all(-(2**63) <= word < 2**63 for word in row)
    assert version_of(row) == FORMAT_VERSION
    assert kind_of(row) is (RowKind.AGREEMENT if isinstance(record, AgreementRecord) else RowKind.GROWTH)
    assert decode(row) == record


def test_never_measured_is_neither_zero_nor_nan() -> None:
    measured = (SlotMeasurement(None, 0.0, math.nan), SlotMeasurement(-0.0, None, None))
    decoded = decode(encode(agreement_record(measurements=measured)))
    assert isinstance(decoded, AgreementRecord)
    first, second = decoded.measurements
    assert first.gradient_ratio is None
    assert first.gradient_health == 0.0
    assert first.contribution is not None
    assert math.isnan(first.contribution)
    assert second.gradient_ratio is not None
    assert math.copysign(1.0, second.gradient_ratio) == -1.0
    assert second.contribution is None


def test_a_slot_more_than_a_row_holds_is_refused_by_number() -> None:
    many = tuple(slot_record(f"r0c{column}") for column in range(ROW_SLOTS + 1))
    with pytest.raises(TooManySlots, match="17 slots or actions do not fit into one exchange: at most 16"):
        encode(agreement_record(slots=many, measurements=()))


def test_a_long_name_keeps_its_start_and_stays_itself() -> None:
    one, other = squeeze("conv_" * 10 + "a"), squeeze("conv_" * 10 + "b")
    assert one.startswith("conv_conv_")
    assert one != other
    assert len(one.encode()) == NAME_BYTES
    assert squeeze(one) == one
    assert len(squeeze("é" * 40).encode()) <= NAME_BYTES
    long = agreement_record().slots[1]
    decoded = decode(encode(agreement_record(slots=(long, replace(long, blueprint="conv_" * 10 + "a")))))
    assert isinstance(decoded, AgreementRecord)
    assert decoded.slots[1].blueprint == one
