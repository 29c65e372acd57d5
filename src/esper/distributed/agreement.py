"""The exchanges by which ranks stay one run.

Two an epoch: what each rank is and has measured, at its end; and, before the next one trains, whether what
came after that left all alike. One more in an epoch that changes the model. A rank that decides to change it
while the others wait meets them in the next start: rows have one size and say which exchange they are of, so
all ranks read what the others are doing and raise the same error, instead of waiting for each other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch.distributed as dist
from torch import Tensor

from esper.checks import check_int
from esper.distributed.audit import State, digest_of, require_same_state
from esper.distributed.control import Control
from esper.distributed.divergence import compare, require_same, require_same_words
from esper.distributed.rows import (
    SAME_BYTES,
    AgreementRecord,
    GrowthRecord,
    Own,
    Record,
    decode,
    decode_count,
    encode,
    encode_count,
    encode_text,
    kind_of,
    own_of,
    text_length,
    text_part,
    version_of,
)
from esper.errors import ConfigError, GrowthFailed, LifecycleDivergence
from esper.lifecycle.metrics import MetricSums, SlotMeasurement, mean_measurement
from esper.lifecycle.record import SlotRecord

_LOGGER = logging.getLogger(__name__)

# What the digests of a record were made of, in words; asked for only where ranks have different ones.
Explain = Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig:
    """`deadline`: seconds to wait for other ranks. `debug`: a barrier and log lines at each exchange.
    `audit_every`: epochs between two audits of the whole state; 0: at the end of the run only.
    """

    deadline: float = 60.0
    debug: bool = False
    audit_every: int = 10

    def __post_init__(self) -> None:
        check_int("agreement.audit_every", self.audit_every, 0)
        if not (math.isfinite(self.deadline) and self.deadline > 0):
            raise ConfigError("agreement.deadline", self.deadline, "a finite number of seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What the ranks agreed on; bit for bit the same on each of them."""

    epoch: int
    slots: tuple[SlotRecord, ...]
    fingerprint: int  # of the model
    own: tuple[Own, ...]  # in group rank order, what each rank has measured for itself
    train: MetricSums
    test: MetricSums
    measurements: tuple[SlotMeasurement, ...]  # one a slot, averaged over ranks
    next_batches: tuple[tuple[int, int], ...]  # (global rank, batches it announces)
    panicking: tuple[int, ...]  # global ranks
    stopping: tuple[int, ...]  # global ranks that were asked to end the run
    fell_back: tuple[int, ...]  # global ranks whose steps were to be compiled and are not any more
    random_bits: int  # 64, from the first rank

    @property
    def panic(self) -> bool:
        """Whether any rank panicked, which makes it everybody's panic."""
        return bool(self.panicking)


class Agreement:
    """The ranks' exchanges, on process groups of their own. Group None: one process, and no group at all."""

    def __init__(self, group: dist.ProcessGroup | None, config: AgreementConfig | None = None) -> None:
        """Collective: every rank, same order. Makes gloo groups beside `group`, which is of gloo or nccl.

        Raises UnknownBackend for any other.
        """
        self.config = config or AgreementConfig()
        self._control = Control(group, deadline=self.config.deadline, debug=self.config.debug)
        self.ranks, self.rank = self._control.ranks, self._control.rank

    @property
    def world_size(self) -> int:
        """How many ranks agree."""
        return len(self.ranks)

    def exchange(self, record: AgreementRecord, explain: Explain | None = None) -> Agreed:
        """Collective: every rank, same order. What all ranks agree on, from each rank's own record.

        Raises LifecycleDivergence, the same on every rank, when they don't; AgreementDeadline when a rank is
        late. Where a digest differs, `explain` gives the words by which the error names what does.
        """
        where = f"the agreement of epoch {record.epoch}"
        if self.config.debug:
            self._log_turns(record)
        gathered = self._compared(record, "agreement", where, explain)
        own = tuple([own_of([rows[rank] for rows in gathered], len(record.slots)) for rank in self.ranks])
        by_rank = tuple(zip(self.ranks, own, strict=True))
        return Agreed(
            epoch=record.epoch,
            slots=record.slots,
            fingerprint=record.fingerprint,
            own=own,
            train=sum([each.train for each in own], MetricSums()),
            test=sum([each.test for each in own], MetricSums()),
            measurements=tuple(
                [
                    mean_measurement(column)
                    for column in zip(*[each.measurements for each in own], strict=True)
                ]
            ),
            next_batches=tuple([(rank, each.next_batches) for rank, each in by_rank]),
            panicking=tuple([rank for rank, each in by_rank if each.panic]),
            stopping=tuple([rank for rank, each in by_rank if each.stop]),
            fell_back=tuple([rank for rank, each in by_rank if each.compile_state > 1]),
            random_bits=own[0].random_bits,
        )

    def begin(self, record: AgreementRecord, explain: Explain | None = None) -> None:
        """Collective: every rank, same order. Returns when all ranks are about to train the same.

        With unequal numbers of parameters DistributedDataParallel would end the process in the backward pass.
        Raises as `exchange`.
        """
        self._compared(record, "start", f"the start of epoch {record.epoch}", explain)

    def confirm(self, growth: GrowthRecord) -> None:
        """Collective: every rank, same order. Returns when all ranks are about to commit the same.

        Raises LifecycleDivergence when they differ (in the decision, a gate's verdict, a seed, or a building
        that failed on some), GrowthFailed when no rank could prepare an action, AgreementDeadline when a
        rank is late.
        """
        self._compared(growth, "growth", f"the growth of epoch {growth.epoch}", None)
        for step in growth.steps:
            if step.error:
                raise GrowthFailed(step.slot_id, step.action, step.error)

    def counts(self, mine: int, purpose: str, where: str) -> dict[int, int]:
        """Collective: every rank, same order. Each rank's number, by global rank in group order.

        Raises AgreementDeadline when a rank is late, LifecycleDivergence when one is in another exchange.
        """
        rows = self._gather(encode_count(mine), purpose, where)
        return {rank: decode_count(row) for rank, row in rows.items()}

    def texts(self, mine: str, where: str) -> dict[int, str]:
        """Collective: every rank, same order. Each rank's text, by global rank. Raises as `counts`."""
        pieces = encode_text(mine.encode())
        first = self._gather(pieces[0], "text", where)
        lengths = {rank: text_length(row) for rank, row in first.items()}
        parts = {rank: [text_part(row)] for rank, row in first.items()}
        empty = encode_text(b"")[0]
        number = 1
        while max(lengths.values()) > number * len(text_part(empty)):
            mine_now = pieces[number] if number < len(pieces) else empty
            for rank, row in self._gather(mine_now, "text", where).items():
                parts[rank].append(text_part(row))
            number += 1
        return {rank: b"".join(each)[: lengths[rank]].decode() for rank, each in parts.items()}

    def audit(self, state: State, where: str) -> None:
        """Collective: every rank, same order. Returns when all ranks have the same state.

        Raises LifecycleDivergence with the first part that differs, otherwise as `counts`.
        """
        if len(set(self.counts(digest_of(state), "audit", where).values())) > 1:
            require_same_state(self.texts, state, where)

    def mean_(self, values: Tensor, purpose: str) -> None:
        """Collective: every rank, same order. Replaces `values` (N,) by their mean over ranks; `purpose` is
        its tag.

        Raises AgreementDeadline when a rank is late.
        """
        self._control.mean_(values, purpose)

    def close(self) -> None:
        """Destroy the groups. Not a collective."""
        self._control.close()

    def __enter__(self) -> Agreement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _compared(
        self, record: Record, purpose: str, where: str, explain: Explain | None
    ) -> list[dict[int, bytes]]:
        """All rows by global rank in group order, once their common parts are the same."""
        gathered = []
        for mine in encode(record):
            rows = self._gather(mine, purpose, where)
            gathered.append(rows)
            same = mine if isinstance(record, GrowthRecord) else mine[:SAME_BYTES]
            if not all(row.startswith(same) for row in rows.values()):
                self._tell({rank: decode(row) for rank, row in rows.items()}, where, explain)
        return gathered

    def _tell(self, records: Mapping[int, Record], where: str, explain: Explain | None) -> None:
        try:
            compare(records, where)
        except LifecycleDivergence as error:
            if explain is not None and error.fields[0].field in ("config", "model layout"):
                require_same_words(partial(self.texts, where=where), explain(), where)
            raise

    def _gather(self, mine: bytes, purpose: str, where: str) -> dict[int, bytes]:
        rows = self._control.rows(mine, purpose, where)
        # What these two say has to be known before the rest of a row can be read.
        begin = mine[:16]
        if not all(row.startswith(begin) for row in rows.values()):
            versions = [(rank, str(version_of(row))) for rank, row in rows.items()]
            require_same({"row format": versions}, where)
            require_same(
                {"exchange": [(rank, kind_of(row).name.lower()) for rank, row in rows.items()]}, where
            )
        return rows

    def _log_turns(self, record: AgreementRecord) -> None:
        for slot in record.slots:
            _LOGGER.info(
                "rank %d, epoch %d: turn of slot %s, %s",
                self.rank,
                record.epoch,
                slot.slot_id,
                slot.stage.name,
            )
