"""Records to rows and back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from esper.distributed.rows import (
    FORMAT_VERSION,
    NAME_BYTES,
    ROW_BYTES,
    ROW_SLOTS,
    SAME_BYTES,
    AgreementRecord,
    GrowthRecord,
    GrowthStep,
    RowKind,
    decode,
    decode_count,
    encode,
    encode_count,
    encode_text,
    kind_of,
    own_of,
    squeeze,
    text_length,
    text_part,
    version_of,
    with_own,
)
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.config import Blend
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
    blend=st.none() | st.sampled_from(Blend),
)
measurements = st.builds(
    SlotMeasurement, st.none() | numbers, st.none() | numbers, st.none() | numbers, st.booleans()
)


@st.composite
def agreement_records(draw: st.DrawFn) -> AgreementRecord:
    pairs = draw(st.lists(st.tuples(slots, measurements), max_size=ROW_SLOTS))
    return AgreementRecord(
        kind=draw(st.sampled_from([RowKind.AGREEMENT, RowKind.START])),
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
        manner=st.just("") | names,
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
    (row,) = encode(record)
    assert len(row) == ROW_BYTES
    assert version_of(row) == FORMAT_VERSION
    assert kind_of(row) is record.kind
    assert decode(row) == record


def test_never_measured_is_neither_zero_nor_nan() -> None:
    measured = (SlotMeasurement(None, 0.0, math.nan), SlotMeasurement(-0.0, None, None))
    (row,) = encode(agreement_record(measurements=measured))
    decoded = decode(row)
    assert isinstance(decoded, AgreementRecord)
    first, second = decoded.measurements
    assert first.gradient_ratio is None
    assert first.gradient_health == 0.0
    assert first.contribution is not None
    assert math.isnan(first.contribution)
    assert second.gradient_ratio is not None
    assert math.copysign(1.0, second.gradient_ratio) == -1.0
    assert second.contribution is None


def test_more_slots_than_a_row_holds_chain_further_rows() -> None:
    many = tuple(slot_record(f"r0c{column}", birth=column) for column in range(2 * ROW_SLOTS + 1))
    measured = tuple(SlotMeasurement(contribution=float(column)) for column in range(len(many)))
    record = agreement_record(slots=many, measurements=measured)
    rows = encode(record)
    assert [len(row) for row in rows] == [ROW_BYTES] * 3
    parts = [decode(row) for row in rows]
    assert [len(part.slots) for part in parts if isinstance(part, AgreementRecord)] == [16, 16, 1]
    blank = replace(record, panic=True, train=MetricSums(), measurements=())
    assert with_own(blank, own_of(rows, len(many))) == record


def test_what_must_be_the_same_is_one_piece_and_holds_nothing_else() -> None:
    record = agreement_record()
    (mine,) = encode(record)
    own: dict[str, Any] = {"next_batches": 3, "panic": True, "random_bits": 1, "train": MetricSums()}
    own |= {"test": MetricSums(), "measurements": (SlotMeasurement(1.0), SlotMeasurement())}
    (other,) = encode(replace(record, **own))
    assert mine[:SAME_BYTES] == other[:SAME_BYTES]
    assert with_own(record, own_of([other], len(record.slots))) == replace(record, **own)
    # Whether steps are compiled is the same on all ranks; that one rank cannot compile any more is its own.
    one, two, off = (encode(replace(record, compile_state=state))[0] for state in (1, 2, 0))
    assert one[:SAME_BYTES] == two[:SAME_BYTES] != off[:SAME_BYTES]


@given(st.text(max_size=5 * ROW_BYTES))
def test_a_text_travels_in_rows_and_says_how_long_it_is(text: str) -> None:
    rows = encode_text(text.encode())
    assert {len(row) for row in rows} == {ROW_BYTES}
    assert b"".join(map(text_part, rows))[: text_length(rows[0])].decode() == text
    assert kind_of(rows[0]) is RowKind.TEXT


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_is_a_row_of_its_own(number: int) -> None:
    row = encode_count(number)
    assert (len(row), kind_of(row), decode_count(row)) == (ROW_BYTES, RowKind.COUNT, number)


def test_a_long_name_keeps_its_start_and_stays_itself() -> None:
    one, other = squeeze("conv_" * 10 + "a"), squeeze("conv_" * 10 + "b")
    assert one.startswith("conv_conv_")
    assert one != other
    assert len(one.encode()) == NAME_BYTES
    assert squeeze(one) == one
    assert len(squeeze("é" * 40).encode()) <= NAME_BYTES
    long = agreement_record().slots[1]
    (row,) = encode(agreement_record(slots=(long, replace(long, blueprint="conv_" * 10 + "a"))))
    decoded = decode(row)
    assert isinstance(decoded, AgreementRecord)
    assert decoded.slots[1].blueprint == one
