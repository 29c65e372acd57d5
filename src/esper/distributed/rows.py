"""One rank's rows of an exchange: records to rows of one size and back. Pure.

A row has `ROW_BYTES` whatever it carries: gloo aborts the process when rows of unequal size meet, and two
ranks in different exchanges should read each other's row and say so. It has room for `ROW_SLOTS` slots; more
chain further rows, which ranks can tell from the count and the order in the first. What has to be the same on
all ranks comes first, in one piece, so that comparing it is comparing bytes; floats travel as their bits.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from esper.distributed.digest import stable_digest
from esper.lifecycle.config import Blend
from esper.lifecycle.metrics import MetricSums, SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage

FORMAT_VERSION = 4
ROW_SLOTS = 16
NAME_BYTES = 24
ERROR_BYTES = 96

# Version, kind, number of the row, run, epoch, slots in all rows, digest of their order.
_HEAD = struct.Struct("<7q")
# Config, steps, growth RNG, fingerprint, previous decision, whether compiling was asked for.
_IDENTITY = struct.Struct("<6q")
_SLOT = struct.Struct(f"<{NAME_BYTES}s{NAME_BYTES}s6q2d")
# Blends travel as their places here: part of the format.
_BLENDS = (None, Blend.ADD, Blend.MULTIPLY, Blend.GATE)
# Batches, compile state, panic, stop, random bits, sums of training and of evaluation.
_OWN = struct.Struct("<4qQdqqdqq")
# Each number behind a word that says whether it is one: "never measured" is neither 0 nor nan.
_MEASURED = struct.Struct("<qdqdqdq")
_BLANK, _UNMEASURED = bytes(_MEASURED.size), SlotMeasurement()
_STEP = struct.Struct(f"<{4 * f'{NAME_BYTES}s'}3q{ERROR_BYTES}s")
_DECISION = struct.Struct("<q")

# All of an agreement's row that must be the same on every rank.
SAME_BYTES = _HEAD.size + _IDENTITY.size + ROW_SLOTS * _SLOT.size
_OWN_BYTES = _OWN.size + ROW_SLOTS * _MEASURED.size
_STEPS_AT = _HEAD.size + _DECISION.size
ROW_BYTES = max(SAME_BYTES + _OWN_BYTES, _STEPS_AT + ROW_SLOTS * _STEP.size)
TEXT_BYTES = ROW_BYTES - _HEAD.size


class RowKind(IntEnum):
    """Which exchange a row belongs to."""

    AGREEMENT = 1
    GROWTH = 2
    START = 3
    COUNT = 4
    TEXT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementRecord:
    """What one rank says of itself at the end of an epoch, or, of kind START, before the next one begins.

    Digests and fingerprints have 63 bits.
    """

    kind: RowKind = RowKind.AGREEMENT
    run_id: int
    config_digest: int
    epoch: int
    steps: int  # of the optimiser, since the run's start
    slots: tuple[SlotRecord, ...]  # forward order
    growth_rng: int  # digest of what the growth generators would draw next
    fingerprint: int  # of the model; at a START of all but its bits
    previous_decision: int = 0
    next_batches: int = 0  # what this rank's loader announces for the next epoch; -1: it has no length
    compile_state: int = 0  # 0: eager by config, 1: compiled, 2: it was to be, and is not any more
    panic: bool = False
    stop: bool = False  # this rank was asked to end the run after this epoch
    random_bits: int = 0  # 64 bits; rank 0's are everybody's
    train: MetricSums = field(default_factory=MetricSums)
    test: MetricSums = field(default_factory=MetricSums)
    measurements: tuple[SlotMeasurement, ...] = ()  # one a slot, in the order of `slots`


class Own(NamedTuple):
    """The part of an `AgreementRecord` that each rank has for itself."""

    next_batches: int
    compile_state: int
    panic: bool
    stop: bool
    random_bits: int
    train: MetricSums
    test: MetricSums
    measurements: tuple[SlotMeasurement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthStep:
    """One action of a decision as one rank prepared it."""

    slot_id: str
    action: str  # "germinate", "advance", "prune", "set alpha"
    blueprint: str = ""
    manner: str = ""  # as the action has it: "by gate", "over 3 epochs", "to 0.7"
    gate_passed: bool | None = None  # None: no gate asked
    fingerprint: int = 0  # of the seed that was built
    error: str = ""  # of the building; cut to ERROR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthRecord:
    """What one rank is about to commit."""

    run_id: int
    epoch: int
    decision: int
    steps: tuple[GrowthStep, ...]

    @property
    def kind(self) -> RowKind:
        """Its exchange."""
        return RowKind.GROWTH


Record = AgreementRecord | GrowthRecord


def encode(record: Record) -> list[bytes]:
    """The record's rows: one, and one more for each `ROW_SLOTS` slots or actions beyond the first."""
    parts: Sequence[SlotRecord | GrowthStep]
    parts = record.slots if isinstance(record, AgreementRecord) else record.steps
    order = order_digest(tuple(part.slot_id for part in parts))
    rows = []
    for number, at in enumerate(range(0, max(1, len(parts)), ROW_SLOTS)):
        head = _HEAD.pack(FORMAT_VERSION, record.kind, number, record.run_id, record.epoch, len(parts), order)
        rows.append((head + _body(record, slice(at, at + ROW_SLOTS))).ljust(ROW_BYTES, b"\0"))
    return rows


def encode_count(number: int) -> bytes:
    """A row that carries one number."""
    return _HEAD.pack(FORMAT_VERSION, RowKind.COUNT, 0, number, 0, 0, 0).ljust(ROW_BYTES, b"\0")


def decode_count(row: bytes) -> int:
    """The number of a row of kind COUNT."""
    number: int = _HEAD.unpack_from(row)[3]
    return number


def encode_text(data: bytes) -> list[bytes]:
    """The rows of a text: its length is in the first, so whoever has less goes on with empty ones."""
    rows = []
    for number, at in enumerate(range(0, max(1, len(data)), TEXT_BYTES)):
        head = _HEAD.pack(FORMAT_VERSION, RowKind.TEXT, number, len(data), 0, 0, 0)
        rows.append((head + data[at : at + TEXT_BYTES]).ljust(ROW_BYTES, b"\0"))
    return rows


def text_length(row: bytes) -> int:
    """The bytes of the whole text of which `row` is the first."""
    return decode_count(row)


def text_part(row: bytes) -> bytes:
    """The part of a text in a row of kind TEXT, with what fills it up."""
    return row[_HEAD.size :]


def decode(row: bytes) -> Record:
    """The record of one row whose format is known, with the slots or steps that this row holds."""
    _, kind, number, run_id, epoch, total, _ = _HEAD.unpack_from(row)
    count = min(ROW_SLOTS, total - number * ROW_SLOTS)
    if kind == RowKind.GROWTH:
        (decision,) = _DECISION.unpack_from(row, _HEAD.size)
        steps = tuple(_decoded_step(row, _STEPS_AT + index * _STEP.size) for index in range(count))
        return GrowthRecord(run_id=run_id, epoch=epoch, decision=decision, steps=steps)
    config, steps_taken, rng, fingerprint, previous, _ = _IDENTITY.unpack_from(row, _HEAD.size)
    begin = _HEAD.size + _IDENTITY.size
    record = AgreementRecord(
        kind=RowKind(kind),
        run_id=run_id,
        config_digest=config,
        epoch=epoch,
        steps=steps_taken,
        slots=tuple(_decoded_slot(row, begin + index * _SLOT.size) for index in range(count)),
        growth_rng=rng,
        fingerprint=fingerprint,
        previous_decision=previous,
    )
    return with_own(record, own_of([row], count))


def with_own(record: AgreementRecord, own: Own) -> AgreementRecord:
    """The record of the rank whose `own` this is; the rest is the same as in `record`."""
    return replace(record, **own._asdict())


def own_of(rows: Sequence[bytes], slots: int) -> Own:
    """What a rank that sent these rows, of `slots` slots, has measured for itself."""
    batches, compiled, panic, stop, bits, *sums = _OWN.unpack_from(rows[0], SAME_BYTES)
    begin = SAME_BYTES + _OWN.size
    measurements = [
        _decoded_measure(row[at : at + _MEASURED.size])
        for number, row in enumerate(rows)
        for at in range(
            begin, begin + min(ROW_SLOTS, slots - number * ROW_SLOTS) * _MEASURED.size, _MEASURED.size
        )
    ]
    train, test = MetricSums(*sums[:3]), MetricSums(*sums[3:])
    return Own(batches, compiled, bool(panic), bool(stop), bits, train, test, tuple(measurements))


def version_of(row: bytes) -> int:
    """The format version of a row, whatever wrote it."""
    version: int = struct.unpack_from("<q", row)[0]
    return version


def kind_of(row: bytes) -> RowKind:
    """Which exchange the row belongs to."""
    return RowKind(struct.unpack_from("<q", row, 8)[0])


@lru_cache(maxsize=64)
def order_digest(slot_ids: tuple[str, ...]) -> int:
    """63-bit digest of slot ids in forward order, the same in every process."""
    return stable_digest(list(slot_ids))


def squeeze(name: str, room: int = NAME_BYTES) -> str:
    """`name` if its UTF-8 fits into `room` bytes, else its start, a tilde and 8 hex digits of its digest."""
    data = name.encode()
    if len(data) <= room:
        return name
    start = data[: room - 9].decode(errors="ignore")
    return f"{start}~{hashlib.blake2b(data, digest_size=4).hexdigest()}"


def _body(record: Record, part: slice) -> bytes:
    if isinstance(record, GrowthRecord):
        return _DECISION.pack(record.decision) + b"".join(map(_encoded_step, record.steps[part]))
    measurements = record.measurements or (SlotMeasurement(),) * len(record.slots)
    same = _IDENTITY.pack(
        record.config_digest,
        record.steps,
        record.growth_rng,
        record.fingerprint,
        record.previous_decision,
        record.compile_state != 0,
    ) + b"".join(map(_encoded_slot, record.slots[part]))
    own = _OWN.pack(
        record.next_batches,
        record.compile_state,
        record.panic,
        record.stop,
        record.random_bits,
        record.train.loss_sum,
        record.train.correct,
        record.train.samples,
        record.test.loss_sum,
        record.test.correct,
        record.test.samples,
    )
    return (
        same.ljust(SAME_BYTES - _HEAD.size, b"\0") + own + b"".join(map(_encoded_measure, measurements[part]))
    )


def _encoded_slot(slot: SlotRecord) -> bytes:
    return _SLOT.pack(
        squeeze(slot.slot_id).encode(),
        squeeze(slot.blueprint or "").encode(),
        slot.stage,
        slot.birth,
        slot.epochs_in_stage,
        slot.alpha_mode,
        slot.ticks_left,
        _BLENDS.index(slot.blend),
        slot.alpha,
        slot.alpha_target,
    )


def _decoded_slot(row: bytes, at: int) -> SlotRecord:
    slot_id, blueprint, stage, birth, epochs, mode, ticks, blend, alpha, target = _SLOT.unpack_from(row, at)
    name = _text(blueprint) or None
    return SlotRecord(
        _text(slot_id), Stage(stage), name, birth, epochs, alpha, target, mode, ticks, _BLENDS[blend]
    )


def _encoded_measure(measured: SlotMeasurement) -> bytes:
    ratio, health, contribution = measured.gradient_ratio, measured.gradient_health, measured.contribution
    return _MEASURED.pack(
        ratio is not None,
        0.0 if ratio is None else ratio,
        health is not None,
        0.0 if health is None else health,
        contribution is not None,
        0.0 if contribution is None else contribution,
        measured.exploding,
    )


def _decoded_measure(measured: bytes) -> SlotMeasurement:
    if measured == _BLANK:  # most slots of most models are empty
        return _UNMEASURED
    has_ratio, ratio, has_health, health, has_contribution, contribution, exploding = _MEASURED.unpack(
        measured
    )
    return SlotMeasurement(
        ratio if has_ratio else None,
        health if has_health else None,
        contribution if has_contribution else None,
        bool(exploding),
    )


def _encoded_step(step: GrowthStep) -> bytes:
    return _STEP.pack(
        squeeze(step.slot_id).encode(),
        squeeze(step.action).encode(),
        squeeze(step.blueprint).encode(),
        squeeze(step.manner).encode(),
        step.gate_passed is not None,
        bool(step.gate_passed),
        step.fingerprint,
        squeeze(step.error, ERROR_BYTES).encode(),
    )


def _decoded_step(row: bytes, at: int) -> GrowthStep:
    slot_id, action, blueprint, manner, asked, passed, fingerprint, error = _STEP.unpack_from(row, at)
    return GrowthStep(
        slot_id=_text(slot_id),
        action=_text(action),
        blueprint=_text(blueprint),
        manner=_text(manner),
        gate_passed=bool(passed) if asked else None,
        fingerprint=fingerprint,
        error=_text(error),
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()
