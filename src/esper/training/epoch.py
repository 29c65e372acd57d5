"""The parts of an epoch that neither communicate nor decide: steps over batches, evaluation, measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.distributed.loaders import Shadow
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.metrics import GradientTrend, MetricSums, SlotMeasurement
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage
from esper.lockstep import tag
from esper.model import GrownModel
from esper.model.gradients import GradientLog
from esper.training.batchnorm import heal, kept_statistics, running_statistics
from esper.training.tasks import Batch

# torch adds so much to a norm before it divides, and some by rounding.
_CLIP_MARGIN = 1e-4
# Seeds that train and may still advance: what gates ask about is read from their gradients.
_TRAINED = frozenset({Stage.TRAINING, Stage.BLENDING, Stage.HOLDING})
# Seeds whose absence would change the output.
_COUNTING = frozenset({Stage.BLENDING, Stage.HOLDING})


def train_on(
    module: nn.Module,
    batches: Iterable[Batch | Shadow[Batch]],
    optimizer: torch.optim.Optimizer,
    *,
    clip: float,
    after_backward: Callable[[], None],
) -> tuple[MetricSums, int]:
    """One optimiser step a batch; the sums over the samples and the number of steps taken.

    `after_backward` is called with the gradients as the backward pass left them, before those of the
    optimiser's parameters are clipped.
    Gradients that are not finite, as a seed's nan makes them, are not stepped on: the weights stay as they
    were, and the sums say it. Averaged gradients are the same on all ranks, so all leave the step out.
    BatchNorm's statistics saw the nan in the forward pass: where they are not finite any more they go back
    to what they were at first.
    A shadow takes part in the step's collectives and counts in nothing else.
    """
    module.train()
    statistics = running_statistics(module)
    good = [tensor.clone() for tensor in statistics]
    sums, steps = MetricSums(), 0
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = [parameter for parameter in stepped if parameter.requires_grad]
    for batch in batches:
        shadow = isinstance(batch, Shadow)
        inputs, classes = batch.batch if isinstance(batch, Shadow) else batch
        for parameter in stepped:  # the optimiser's own way takes 0.1 ms
            parameter.grad = None
        with kept_statistics(module) if shadow else nullcontext():
            logits = module(inputs)
            loss = _loss(logits, classes)
            with tag("gradients"):
                torch.autograd.backward(loss * 0.0 if shadow else loss)
        after_backward()
        norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        # The one time in a step that the host waits for the device.
        loss_value, norm_value, correct = torch.stack(
            [loss.detach().double(), norm.double(), _correct(logits, classes).double()]
        ).tolist()
        if math.isfinite(norm_value):
            if norm_value > clip - _CLIP_MARGIN:  # most steps' gradients are to be left as they are
                nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            optimizer.step()
            steps += 1
        else:
            heal(statistics, good)
        if not shadow:
            sums += MetricSums(loss_value * classes.numel(), int(correct), classes.numel())
    return sums, steps


@torch.no_grad()
def evaluate_on(
    model: GrownModel,
    batches: Iterable[Batch],
    variants: Sequence[Mapping[str, float | Tensor]] = ({},),
) -> list[MetricSums]:
    """Sums over the batches in eval mode, for each of `variants`: alpha overrides as `GrownModel.forward`."""
    model.eval()
    sums = [MetricSums() for _ in variants]
    for inputs, classes in batches:
        for index, logits in enumerate(model.counterfactuals(inputs, variants)):
            loss = float(_loss(logits, classes)) * classes.numel()
            sums[index] += MetricSums(loss, int(_correct(logits, classes)), classes.numel())
    return sums


class GradientWatch:
    """Folds the gradients of each step of one epoch into a trend a slot, once the epoch is over."""

    def __init__(self, model: GrownModel, clip: float) -> None:
        self._clip = clip
        slots = [record.slot_id for record in model.records() if record.stage in _TRAINED]
        self._log = GradientLog(model, slots)

    def __call__(self) -> None:
        """Read the gradients that are there now, without waiting for the device."""
        self._log.read()

    def trends(self) -> dict[str, GradientTrend]:
        """The trend of each slot that had gradients."""
        found: dict[str, GradientTrend] = {}
        for reading in self._log.stats():
            for slot_id, stats in reading.items():
                found[slot_id] = found.get(slot_id, GradientTrend()).updated(stats, self._clip)
        return found


def counting_slots(records: Iterable[SlotRecord]) -> tuple[str, ...]:
    """The slots whose contribution is asked for."""
    return tuple(
        record.slot_id
        for record in records
        if record.stage in _COUNTING and record.alpha_mode != AlphaMode.DOWN
    )


def measure_slots(
    records: Iterable[SlotRecord],
    trends: Mapping[str, GradientTrend],
    accuracy_without: Mapping[str, float],
    accuracy: float,
) -> tuple[SlotMeasurement, ...]:
    """One measurement a slot; `accuracy_without` has the accuracy with that slot off, in points."""
    return tuple(
        SlotMeasurement(
            gradient_ratio=trend.ratio,
            gradient_health=trend.health,
            contribution=accuracy - accuracy_without[slot_id] if slot_id in accuracy_without else None,
            exploding=trend.exploding,
        )
        for slot_id in [record.slot_id for record in records]
        for trend in [trends.get(slot_id, GradientTrend())]
    )


def _loss(logits: Tensor, classes: Tensor) -> Tensor:
    # Logits (N, classes), or (N, T, classes) for text.
    return functional.cross_entropy(logits.flatten(0, -2), classes.flatten())


def _correct(logits: Tensor, classes: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=-1) == classes).sum()
