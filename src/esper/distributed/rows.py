"""One rank's row of an exchange: records to fixed-size int64 rows and back. Pure.

A row has `ROW_WORDS` words whatever it carries: a header, then room for `ROW_SLOTS` slots. Floats travel as
their bits, so that ranks compare bits. The growth exchange uses rows of the same size, because gloo aborts
the process when rows of unequal size meet, and two ranks in different exchanges should read each other's row
and say so.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from esper.distributed.digest import stable_digest
from esper.errors import TooManySlots
from esper.lifecycle.metrics import MetricSums, SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage

FORMAT_VERSION = 1
ROW_SLOTS = 16
HEADER_WORDS = 24
SLOT_WORDS = 24
ROW_WORDS = HEADER_WORDS + ROW_SLOTS * SLOT_WORDS
NAME_BYTES = 24
ERROR_BYTES = 96


class RowKind(IntEnum):
    """Which exchange a row belongs to."""

    AGREEMENT = 1
    GROWTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementRecord:
    """What one rank says of itself at the end of an epoch. Digests and fingerprints have 63 bits."""

    run_id: int
    config_digest: int
    epoch: int
    steps: int  # of the optimiser, since the run's start
    slots: tuple[SlotRecord, ...]  # forward order
    growth_rng: int  # digest of what the growth generators would draw next
    fingerprint: int  # of the model
    previous_decision: int = 0
    next_batches: int = 0  # what this rank's loader announces for the next epoch
    compile_state: int = 0
    panic: bool = False
    random_bits: int = 0  # 64 bits; rank 0's are everybody's
    train: MetricSums = field(default_factory=MetricSums)
    test: MetricSums = field(default_factory=MetricSums)
    measurements: tuple[SlotMeasurement, ...] = ()  # one a slot, in the order of `slots`


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthStep:
    """One action of a decision as one rank prepared it."""

    slot_id: str
    action: str  # "germinate", "advance", "prune"
    blueprint: str = ""
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


Record = AgreementRecord | GrowthRecord


def encode(record: Record) -> list[int]:
    """The record as `ROW_WORDS` signed 64-bit words. Raises TooManySlots when it needs more than one row."""
    if isinstance(record, AgreementRecord):
        return _encode_agreement(record)
    return _encode_growth(record)


def decode(words: Sequence[int]) -> Record:
    """The record of a row whose format and kind are known (`version_of`, `kind_of`)."""
    if kind_of(words) is RowKind.AGREEMENT:
        return _decode_agreement(words)
    return _decode_growth(words)


def version_of(words: Sequence[int]) -> int:
    """The format version of a row, whatever wrote it."""
    return words[0]


def kind_of(words: Sequence[int]) -> RowKind:
    """Which exchange the row belongs to."""
    return RowKind(words[1])


def order_digest(slot_ids: Sequence[str]) -> int:
    """63-bit digest of slot ids in forward order, the same in every process."""
    return stable_digest(list(slot_ids))


def squeeze(name: str, room: int = NAME_BYTES) -> str:
    """`name` if its UTF-8 fits into `room` bytes, else its start, a tilde and 8 hex digits of its digest."""
    data = name.encode()
    if len(data) <= room:
        return name
    start = data[: room - 9].decode(errors="ignore")
    return f"{start}~{hashlib.blake2b(data, digest_size=4).hexdigest()}"


class _Writer:
    def __init__(self) -> None:
        self.words: list[int] = []

    def ints(self, *values: int) -> None:
        self.words += values

    def floats(self, *values: float) -> None:
        self.words += struct.unpack(f"<{len(values)}q", struct.pack(f"<{len(values)}d", *values))

    def text(self, value: str, room: int = NAME_BYTES) -> None:
        self.words += struct.unpack(f"<{room // 8}q", squeeze(value, room).encode().ljust(room, b"\0"))

    def pad(self, size: int) -> None:
        self.words += [0] * (size - len(self.words))


class _Reader:
    def __init__(self, words: Sequence[int], at: int = 0) -> None:
        self._words, self._at = words, at

    def _take(self, count: int) -> Sequence[int]:
        self._at += count
        return self._words[self._at - count : self._at]

    def word(self) -> int:
        return self._take(1)[0]

    def number(self) -> float:
        value: float = struct.unpack("<d", struct.pack("<q", self.word()))[0]
        return value

    def text(self, room: int = NAME_BYTES) -> str:
        return struct.pack(f"<{room // 8}q", *self._take(room // 8)).rstrip(b"\0").decode()


def _header(kind: RowKind, run_id: int, epoch: int, slot_ids: Sequence[str]) -> _Writer:
    if len(slot_ids) > ROW_SLOTS:
        raise TooManySlots(len(slot_ids), ROW_SLOTS)
    row = _Writer()
    # The count and the order come first: with them agreed, ranks can chain as many further rows as the slots
    # need.
    row.ints(FORMAT_VERSION, kind, run_id, epoch, len(slot_ids), order_digest(slot_ids))
    return row


def _encode_agreement(record: AgreementRecord) -> list[int]:
    row = _header(RowKind.AGREEMENT, record.run_id, record.epoch, [slot.slot_id for slot in record.slots])
    row.ints(
        record.config_digest, record.steps, record.growth_rng, record.fingerprint, record.previous_decision
    )
    row.ints(record.next_batches, record.compile_state, record.panic, _signed(record.random_bits))
    for sums in (record.train, record.test):
        row.floats(sums.loss_sum)
        row.ints(sums.correct, sums.samples)
    measurements = record.measurements or (SlotMeasurement(),) * len(record.slots)
    for index, (slot, measured) in enumerate(zip(record.slots, measurements, strict=True)):
        row.pad(HEADER_WORDS + index * SLOT_WORDS)
        row.text(slot.slot_id)
        row.text(slot.blueprint or "")
        row.ints(slot.stage, slot.birth, slot.epochs_in_stage, slot.alpha_mode, slot.ticks_left)
        row.floats(slot.alpha, slot.alpha_target)
        for value in (measured.gradient_ratio, measured.gradient_health, measured.contribution):
            row.ints(value is not None)  # a word of its own: "never measured" is neither 0 nor nan
            row.floats(0.0 if value is None else value)
        row.ints(measured.exploding)
    row.pad(ROW_WORDS)
    return row.words


def _decode_agreement(words: Sequence[int]) -> AgreementRecord:
    row = _Reader(words, at=2)
    run_id, epoch, count, _ = row.word(), row.word(), row.word(), row.word()
    config_digest, steps, growth_rng, fingerprint, previous = (row.word() for _ in range(5))
    next_batches, compile_state, panic, random_bits = (row.word() for _ in range(4))
    train = MetricSums(row.number(), row.word(), row.word())
    test = MetricSums(row.number(), row.word(), row.word())
    slots, measurements = [], []
    for index in range(count):
        row = _Reader(words, at=HEADER_WORDS + index * SLOT_WORDS)
        slot_id, blueprint = row.text(), row.text()
        stage, birth, epochs, mode, ticks = (row.word() for _ in range(5))
        alpha, target = row.number(), row.number()
        slots.append(
            SlotRecord(slot_id, Stage(stage), blueprint or None, birth, epochs, alpha, target, mode, ticks)
        )
        ratio, health, contribution = (_optional(row.word(), row.number()) for _ in range(3))
        measurements.append(SlotMeasurement(ratio, health, contribution, bool(row.word())))
    return AgreementRecord(
        run_id=run_id,
        config_digest=config_digest,
        epoch=epoch,
        steps=steps,
        slots=tuple(slots),
        growth_rng=growth_rng,
        fingerprint=fingerprint,
        previous_decision=previous,
        next_batches=next_batches,
        compile_state=compile_state,
        panic=bool(panic),
        random_bits=random_bits % 2**64,
        train=train,
        test=test,
        measurements=tuple(measurements),
    )


def _encode_growth(record: GrowthRecord) -> list[int]:
    row = _header(RowKind.GROWTH, record.run_id, record.epoch, [step.slot_id for step in record.steps])
    row.ints(record.decision)
    for index, step in enumerate(record.steps):
        row.pad(HEADER_WORDS + index * SLOT_WORDS)
        row.text(step.slot_id)
        row.text(step.action)
        row.text(step.blueprint)
        row.ints(step.gate_passed is not None, bool(step.gate_passed), step.fingerprint)
        row.text(step.error, ERROR_BYTES)
    row.pad(ROW_WORDS)
    return row.words


def _decode_growth(words: Sequence[int]) -> GrowthRecord:
    row = _Reader(words, at=2)
    run_id, epoch, count, _, decision = (row.word() for _ in range(5))
    steps = []
    for index in range(count):
        row = _Reader(words, at=HEADER_WORDS + index * SLOT_WORDS)
        slot_id, action, blueprint = row.text(), row.text(), row.text()
        asked, passed, fingerprint = (row.word() for _ in range(3))
        steps.append(
            GrowthStep(
                slot_id=slot_id,
                action=action,
                blueprint=blueprint,
                gate_passed=bool(passed) if asked else None,
                fingerprint=fingerprint,
                error=row.text(ERROR_BYTES),
            )
        )
    return GrowthRecord(run_id=run_id, epoch=epoch, decision=decision, steps=tuple(steps))


def _optional(measured: int, value: float) -> float | None:
    return value if measured else None


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits
