"""The parts of an epoch that neither communicate nor decide: steps over batches, evaluation, measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.metrics import GradientTrend, MetricSums, SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage
from esper.model import GrownModel, gradient_stats
from esper.training.tasks import Batch

# Seeds that train and may still advance: what gates ask about is read from their gradients.
_TRAINED = frozenset({Stage.TRAINING, Stage.BLENDING, Stage.HOLDING})
# Seeds whose absence would change the output.
_COUNTING = frozenset({Stage.BLENDING, Stage.HOLDING})


def train_on(
    module: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    clip: float,
    after_backward: Callable[[], None],
) -> tuple[MetricSums, int]:
    """One optimiser step a batch; the sums over the samples and the number of steps.

    `after_backward` is called with the gradients as the backward pass left them, before they are clipped.
    """
    module.train()
    sums, steps = MetricSums(), 0
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for inputs, classes in batches:
        optimizer.zero_grad(set_to_none=True)
        logits = module(inputs)
        loss = functional.cross_entropy(logits, classes)
        torch.autograd.backward(loss)
        after_backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        sums += _sums(logits.detach(), classes, loss.detach())
        steps += 1
    return sums, steps


@torch.no_grad()
def evaluate_on(
    model: GrownModel,
    batches: Iterable[Batch],
    alpha_overrides: Mapping[str, float | Tensor] | None = None,
) -> MetricSums:
    """Sums over the batches in eval mode; `alpha_overrides` as in `GrownModel.forward`."""
    model.eval()
    sums = MetricSums()
    for inputs, classes in batches:
        logits = model(inputs, alpha_overrides=alpha_overrides)
        sums += _sums(logits, classes, functional.cross_entropy(logits, classes))
    return sums


class GradientWatch:
    """Folds the gradients of each step of one epoch into a trend a slot."""

    def __init__(self, model: GrownModel, clip: float) -> None:
        self._model, self._clip = model, clip
        self._slots = [record.slot_id for record in model.records() if record.stage in _TRAINED]
        self.trends: dict[str, GradientTrend] = {}

    def __call__(self) -> None:
        """Read the gradients that are there now."""
        for slot_id in self._slots:
            stats = gradient_stats(self._model, slot_id)
            if stats is not None:
                self.trends[slot_id] = self.trends.get(slot_id, GradientTrend()).updated(stats, self._clip)


def measure_slots(
    records: Iterable[SlotRecord],
    trends: Mapping[str, GradientTrend],
    accuracy_without: Callable[[str], float],
    accuracy: float,
) -> tuple[SlotMeasurement, ...]:
    """One measurement a slot; `accuracy_without` evaluates with that slot off, in points."""
    return tuple(
        SlotMeasurement(
            gradient_ratio=trend.ratio,
            gradient_health=trend.health,
            contribution=accuracy - accuracy_without(record.slot_id) if _counts(record) else None,
            exploding=trend.exploding,
        )
        for record in records
        for trend in [trends.get(record.slot_id, GradientTrend())]
    )


def _counts(record: SlotRecord) -> bool:
    return record.stage in _COUNTING and record.alpha_mode != AlphaMode.DOWN


def _sums(logits: Tensor, classes: Tensor, loss: Tensor) -> MetricSums:
    count = len(classes)
    correct = int((logits.argmax(dim=1) == classes).sum())
    return MetricSums(float(loss) * count, correct, count)
