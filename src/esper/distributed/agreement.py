"""The exchanges by which ranks stay one run: one an epoch, one more in an epoch that changes the model."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from esper.distributed.board import Board
from esper.distributed.deadline import DIAGNOSIS, Deadline
from esper.distributed.divergence import compare, require_same
from esper.distributed.rows import (
    ROW_WORDS,
    AgreementRecord,
    GrowthRecord,
    Record,
    decode,
    encode,
    kind_of,
    version_of,
)
from esper.errors import ConfigError, GrowthFailed
from esper.lifecycle.metrics import MetricSums, SlotMeasurement, mean_measurement
from esper.lockstep import tag

_LOGGER = logging.getLogger(__name__)

# Ranks leave an exchange that was called off with their operation still pending, and gloo does not let a
# process end before the operation's own time-out: this is how much longer than the deadline that is.
_LINGER = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig:
    """`deadline`: seconds to wait for other ranks. `debug`: a barrier and log lines at each exchange."""

    deadline: float = 60.0
    debug: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.deadline) and self.deadline > 0):
            raise ConfigError("agreement.deadline", self.deadline, "a finite number of seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What the ranks agreed on; bit for bit the same on each of them."""

    records: tuple[AgreementRecord, ...]  # in group rank order
    train: MetricSums
    test: MetricSums
    measurements: tuple[SlotMeasurement, ...]  # one a slot, averaged over ranks
    next_batches: tuple[tuple[int, int], ...]  # (global rank, batches it announces)
    panicking: tuple[int, ...]  # global ranks
    random_bits: int  # 64, from the first rank

    @property
    def panic(self) -> bool:
        """Whether any rank panicked, which makes it everybody's panic."""
        return bool(self.panicking)


class Agreement:
    """The ranks' exchanges, on process groups of their own. Group None: one process, and no group at all."""

    def __init__(self, group: dist.ProcessGroup | None, config: AgreementConfig | None = None) -> None:
        """Collective: every rank, same order. Makes gloo groups beside `group`, whatever its backend is."""
        self.config = config or AgreementConfig()
        self.ranks: tuple[int, ...] = (0,)
        self.rank = 0
        self._control: dist.ProcessGroup | None = None
        self._groups: list[dist.ProcessGroup] = []
        if group is None:
            return
        self.ranks = tuple(dist.get_process_group_ranks(group))
        self.rank = dist.get_rank()
        self._control = self._new_group(self.config.deadline + _LINGER)
        # Together first: from its birth on the diagnostic group has no more than its short time-out.
        dist.barrier(self._control)
        diagnostic = self._new_group(DIAGNOSIS)
        # The group's name is unique in the job and the same on every rank, so no key is ever used twice.
        store = PrefixStore(f"esper/{self._control.group_name}", _job_store())
        self._deadline = Deadline(
            self.ranks, self.rank, diagnostic, Board(store), seconds=self.config.deadline
        )

    @property
    def world_size(self) -> int:
        """How many ranks agree."""
        return len(self.ranks)

    def exchange(self, record: AgreementRecord) -> Agreed:
        """Collective: every rank, same order. What all ranks agree on, from each rank's own record.

        Raises LifecycleDivergence, the same on every rank, when they don't; AgreementDeadline when a rank is
        late.
        """
        where = f"the agreement of epoch {record.epoch}"
        if self.config.debug:
            self._log_turns(record)
        records = self._gather(record, "agreement", where)
        compare(records, where)
        rows = tuple(row for row in records.values() if isinstance(row, AgreementRecord))
        return Agreed(
            records=rows,
            train=sum((row.train for row in rows), MetricSums()),
            test=sum((row.test for row in rows), MetricSums()),
            measurements=tuple(
                mean_measurement(column) for column in zip(*(row.measurements for row in rows), strict=True)
            ),
            next_batches=tuple((rank, row.next_batches) for rank, row in zip(records, rows, strict=True)),
            panicking=tuple(rank for rank, row in zip(records, rows, strict=True) if row.panic),
            random_bits=rows[0].random_bits,
        )

    def confirm(self, growth: GrowthRecord) -> None:
        """Collective: every rank, same order. Returns when all ranks are about to commit the same.

        Raises LifecycleDivergence when they differ (in the decision, a gate's verdict, a seed, or a building
        that failed on some), GrowthFailed when no rank could prepare an action, AgreementDeadline when a
        rank is late.
        """
        where = f"the growth of epoch {growth.epoch}"
        compare(self._gather(growth, "growth", where), where)
        for step in growth.steps:
            if step.error:
                raise GrowthFailed(step.slot_id, step.action, step.error)

    def mean_(self, values: Tensor, purpose: str) -> None:
        """Collective: every rank, same order. Replaces `values` (N,) by their mean over ranks; `purpose` is
        its tag.

        Raises AgreementDeadline when a rank is late.
        """
        if self._control is None:
            return
        shared = values.cpu()  # the control group is gloo, whatever the model runs on
        with tag(purpose):
            work = dist.all_reduce(shared, group=self._control, async_op=True)
        assert work is not None
        self._deadline.wait(work, f"the mean of {purpose}")
        values.copy_(shared.div_(self.world_size))

    def close(self) -> None:
        """Destroy the groups. Not a collective.

        After an exchange was called off they are left to the end of the process: gloo's destructor waits for
        the operation that is still under way, which would hold the error up for another second.
        """
        if self._control is not None and self._deadline.called_off:
            self._groups.clear()
        while self._groups:
            dist.destroy_process_group(self._groups.pop())
        self._control = None

    def __enter__(self) -> Agreement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_group(self, timeout: float) -> dist.ProcessGroup:
        group = dist.new_group(
            list(self.ranks),
            backend="gloo",
            timeout=timedelta(seconds=timeout),
            # A part of the job makes its groups without the rest of it.
            use_local_synchronization=self.world_size < dist.get_world_size(),
        )
        assert isinstance(group, dist.ProcessGroup)
        self._groups.append(group)
        return group

    def _gather(self, record: Record, purpose: str, where: str) -> dict[int, Record]:
        """The records of all ranks by global rank, in group order."""
        if self._control is None:
            return {self.rank: decode(encode(record))}
        mine = torch.tensor(encode(record), dtype=torch.int64)
        rows = torch.empty(self.world_size * ROW_WORDS, dtype=torch.int64)
        if self.config.debug:
            self._deadline.muster(dist.barrier(self._control, async_op=True), where)
        with tag(purpose):
            work = _all_gather(rows, mine, self._control)
        self._deadline.wait(work, where)
        words = dict(zip(self.ranks, rows.view(self.world_size, ROW_WORDS).tolist(), strict=True))
        # What these two say has to be known before the rest of a row can be read.
        require_same({"row format": [(rank, str(version_of(row))) for rank, row in words.items()]}, where)
        require_same({"exchange": [(rank, kind_of(row).name.lower()) for rank, row in words.items()]}, where)
        return {rank: decode(row) for rank, row in words.items()}

    def _log_turns(self, record: AgreementRecord) -> None:
        for slot in record.slots:
            _LOGGER.info(
                "rank %d, epoch %d: turn of slot %s, %s",
                self.rank,
                record.epoch,
                slot.slot_id,
                slot.stage.name,
            )


def _all_gather(rows: Tensor, mine: Tensor, group: dist.ProcessGroup) -> dist.Work:
    # torch 2.13 renamed it and warns at the old name; older ones have only that.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work = gather(rows, mine, group=group, async_op=True)
    assert isinstance(work, dist.Work)
    return work


def _job_store() -> Store:
    # torch has no public way to the store that the job already has, and a second one would need a port.
    store = dist.distributed_c10d._get_default_store()
    assert isinstance(store, Store)
    return store
