"""A whole life of a growing network in ten epochs of two steps: what the tests here disturb.

One seed is germinated, trained, blended, held and kept; another on its way is pruned while alpha goes down,
and its slot cools down, is free again and is used again. Every threshold is the config's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.control import Action, Advance, Decision, EpochSignals, Germinate, Prune
from esper.lifecycle import AlphaMode, SlotRecord, Stage
from esper.model import GrownModel
from esper.model.host import SlotPoint, Visit
from esper.training import Callback, Controller, EpochResult, TrainConfig, Trainer, build_model
from esper.training.tasks import Batch, ShardedTask, Task

EPOCHS = 10
STEPS = 2
CONFIG: dict[str, Any] = {
    "run": "miniature",
    "epochs": EPOCHS,
    "batch_size": 4,
    "optimizer": {"name": "adam", "lr": 0.01},
    "slot": {"tempo": 2, "embargoed_epochs": 1},
    "gates": {
        "min_improvement": -200.0,
        "min_training_epochs": 1,
        "min_blending_epochs": 1,
        "min_gradient_ratio": 0.0,
        "min_contribution": -200.0,
        "min_gradient_health": 0.0,
    },
    "agreement": {"deadline": 30.0, "audit_every": 4},
}
PLAN: Mapping[int, Decision] = {
    1: Decision((Germinate("r0c0", "conv_light"),)),
    2: Decision((Advance("r0c0"), Germinate("r0c1", "norm"))),
    3: Decision((Advance("r0c0"), Advance("r0c1"))),  # r0c0 enters BLENDING
    4: Decision((Advance("r0c1"),)),
    5: Decision((Advance("r0c0"), Prune("r0c1"))),  # alpha of r0c1 goes down in two ticks
    6: Decision((Advance("r0c0"),)),  # kept for good
    10: Decision((Germinate("r0c1", "norm"),)),  # it was PRUNED in 7, EMBARGOED in 8, RESETTING in 9
}


@dataclass
class Script:
    """A controller that plays a plan, epoch to decision, and leaves out what is no longer possible."""

    plan: Mapping[int, Decision]

    def decide(self, signals: EpochSignals) -> Decision:
        """As planned, for slots that are where the plan has them: a rollback may have taken a seed out."""
        records = {view.record.slot_id: view.record for view in signals.slots}
        planned = self.plan.get(signals.epoch, Decision()).actions
        return Decision(tuple(each for each in planned if _possible(each, records[each.slot_id])))


def _possible(action: Action, record: SlotRecord) -> bool:
    if isinstance(action, Germinate):
        return record.stage is Stage.DORMANT
    leaving = record.alpha_mode == AlphaMode.DOWN
    return record.blueprint is not None and record.stage is not Stage.FOSSILIZED and not leaving


@dataclass(frozen=True)
class Uneven:
    """A task of which this rank has other numbers of batches: `batches(epoch)` of them."""

    inner: Task
    lengths: Mapping[int, int | None]  # epoch to what is announced; -n: n batches, of which nobody knows

    def announce(self, epoch: int) -> int | None:
        """The length of the epoch's pass."""
        length = self.lengths.get(epoch, self.inner.announce(epoch))
        return None if length is not None and length < 0 else length

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """As many batches."""
        length = self.lengths.get(epoch, self.inner.announce(epoch))
        batches = list(self.inner.train_batches(epoch))
        assert length is not None
        for index in range(abs(length)):
            yield batches[index % len(batches)]

    def test_batches(self) -> Iterator[Batch]:
        """The inner one's."""
        return self.inner.test_batches()


class TinyHost(nn.Module):
    """A single block of a `CnnHost` with a slot within it, behind the convolution, and one at its end, whose
    means are the logits: what a life costs is the number of operations. (N, 1, H, W) to (N, 2).
    """

    topology = "cnn"
    points = (SlotPoint("r0c0", 2), SlotPoint("r0c1", 2))

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)

    def slot_points(self) -> tuple[SlotPoint, ...]:
        """Both."""
        return self.points

    def segment(self, index: int, h: Tensor) -> Tensor:
        """What ends at the slot of this number, or in the logits."""
        if index == 0:
            h = self.convolution(h)
        elif index == 1:
            h = torch.relu(self.norm(h))
        else:
            h = h.mean(dim=(2, 3))
        return h

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        """As any host's."""
        for index, point in enumerate(self.points):
            x = self.segment(index, x)
            x = x if visit is None else visit(point.slot_id, x)
        return self.segment(2, x)


class Miniature(Trainer):
    """A trainer of pictures so small that oneDNN takes four times as long as plain loops to convolve them."""

    def run_epoch(self, epoch: int) -> EpochResult:
        """As any trainer's."""
        usual = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        try:
            return super().run_epoch(epoch)
        finally:
            torch.backends.mkldnn.enabled = usual


def miniature_task(rank: int, world_size: int, *, steps: int = STEPS) -> ShardedTask:
    """Random pictures (N, 1, 4, 4) of two classes, `steps` batches a rank and epoch."""
    drawn = torch.Generator().manual_seed(0)
    pictures = torch.randn(steps * 4 * world_size, 1, 4, 4, generator=drawn)
    classes = (pictures.mean(dim=(1, 2, 3)) > 0).long()
    return ShardedTask(
        train=(pictures, classes),
        test=(pictures[:16], classes[:16]),
        batch_size=4,
        seed=0,
        rank=rank,
        world_size=world_size,
    )


def miniature_model(config: TrainConfig) -> GrownModel:
    """The host with its slots, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return GrownModel(TinyHost(), config.slot)


def miniature(
    rank: int = 0,
    world_size: int = 1,
    *,
    controller: Controller | None = None,
    task: Task | None = None,
    callbacks: Iterable[Callback] = (),
    **changes: Any,
) -> Trainer:
    """Collective: every rank, same order. The trainer of that life; `changes` are of its config, and a host
    among them is a network by its name and size.
    """
    config = TrainConfig.from_dict({**CONFIG, **changes})
    group = dist.group.WORLD if world_size > 1 else None
    return Miniature(
        build_model(config, classes=2) if "host" in changes else miniature_model(config),
        task or miniature_task(rank, world_size),
        controller or Script(PLAN),
        config,
        group=group,
        callbacks=callbacks,
    )


def alike(trainer: Trainer) -> dict[str, Any]:
    """What has to be the same on all ranks at a run's end, and of two runs that went the same way."""
    return {
        "model": trainer.model.state_dict(),
        "alphas": trainer.model.alphas,
        "optimizer": trainer.optimizer.state_dict(),
        "slots": trainer.model.records(),
        "history": [repr(replace(epoch, seconds=0.0)) for epoch in trainer.history.epochs],
    }
