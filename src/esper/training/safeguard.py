"""The governor at work: what a run goes back to when a loss says that its model is being destroyed."""

from __future__ import annotations

import logging
import math

import torch

from esper.control.governor import Alarm, Governor, GovernorConfig
from esper.errors import TrainingDiverged
from esper.lifecycle.metrics import MetricSums
from esper.lifecycle.stage import Stage, has_seed
from esper.model import GrownModel
from esper.training.snapshot import Snapshot, restore

_LOGGER = logging.getLogger(__name__)


class Safeguard:
    """Keeps the last good state of one trainer's model and optimiser, and brings it back."""

    def __init__(self, config: GovernorConfig) -> None:
        self.governor = Governor(config)
        self._good: Snapshot | None = None

    def begin(self, model: GrownModel, optimizer: torch.optim.Optimizer) -> None:
        """Before an epoch: the state that a run starts with is good."""
        if self._good is None and self.governor.config.enabled:
            self._good = Snapshot()
            self._good.take(model, optimizer)

    def panics(self, train: MetricSums, test: MetricSums) -> bool:
        """Whether this rank's losses are a panic; without samples they say nothing. Changes nothing."""
        losses = [sums.loss for sums in (train, test) if sums.samples]
        if not losses:
            return False
        # Evaluation has a level of its own: of its loss only that it is a number is judged.
        worst = next((loss for loss in losses if not math.isfinite(loss)), losses[0])
        return self.governor.judge(worst).panic

    def roll_back(
        self, model: GrownModel, optimizer: torch.optim.Optimizer, *, epoch: int, loss: float
    ) -> None:
        """Back to the last good state, without the seeds that are not fossils.

        Raises TrainingDiverged when that has been done too often in a row, and then changes nothing.
        """
        limit = self.governor.config.max_rollbacks
        if self._good is None or self.governor.rollbacks >= limit:
            raise TrainingDiverged(epoch, loss, self.governor.rollbacks, limit)
        _LOGGER.warning("epoch %d is undone: loss %g", epoch, loss)
        restore(model, optimizer, self._good.saved())
        for record in model.records():
            if has_seed(record.stage) and record.stage is not Stage.FOSSILIZED:
                model.slots[record.slot_id].prune(0)

    def end(
        self, model: GrownModel, optimizer: torch.optim.Optimizer, loss: float, *, panicked: bool
    ) -> None:
        """After an epoch and its tick: learn the agreed loss, keep the state unless it is suspicious."""
        if not self.governor.config.enabled:
            return
        calm = panicked or self.governor.judge(loss) is Alarm.CALM  # what was rolled back to is good, too
        self.governor.learn(loss, panicked=panicked)
        if calm:
            self._good = self._good or Snapshot()
            self._good.take(model, optimizer)

    def forget(self) -> None:
        """The state is another run's now: the next epoch begins with what is good."""
        self._good = None
