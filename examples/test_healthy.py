"""A network that grows under data parallelism, when nothing goes wrong.

On a plateau a seed is germinated; it trains behind the host, passes its gates, is blended in, held and kept.
At the end everything that must be the same on all ranks is, bit for bit.
"""

from __future__ import annotations

from statistics import mean

import pytest

from esper.lifecycle import Stage
from esper.training import History
from examples.growing import GROWING, HOST_ALONE, trainer
from pytest_esper_ddp.handle import DDP

_LIFE = [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]


@pytest.mark.ddp
def test_a_seed_is_grown_and_kept(ddp: DDP) -> None:
    with trainer(ddp, GROWING) as run:
        grown = run.run()
        ddp.assert_same(run.model, "model")  # parameters and BatchNorm's statistics
        ddp.assert_same(run.optimizer, "optimizer")
        ddp.assert_same(run.model.records(), "slots")
    kept = next(record.slot_id for record in grown.final if record.stage is Stage.FOSSILIZED)
    assert stages_of(grown, kept) == _LIFE

    with trainer(ddp, HOST_ALONE) as run:
        alone = run.run()
    assert not any(record.blueprint for record in alone.final)
    if ddp.rank == 0:
        ddp.note(f"{kept}: {life_text(grown, kept)}")
        ddp.note(f"accuracy {accuracy_text(grown)}; the same host without seeds {accuracy_text(alone)}")


def stages_of(history: History, slot_id: str) -> list[Stage]:
    """The stages that a slot's seed went through, each once."""
    every = [
        record.stage for epoch in history.epochs for record in epoch.records if record.slot_id == slot_id
    ]
    every += [record.stage for record in history.final if record.slot_id == slot_id]
    return [stage for stage in dict.fromkeys(every) if stage is not Stage.DORMANT]


def life_text(history: History, slot_id: str) -> str:
    """`GERMINATED in epoch 9, TRAINING in epoch 10, ...`"""
    first: dict[Stage, int] = {}
    for epoch in history.epochs:
        for record in epoch.records:
            if record.slot_id == slot_id and record.stage is not Stage.DORMANT:
                first.setdefault(record.stage, epoch.epoch)
    return ", ".join(f"{stage.name} in epoch {epoch}" for stage, epoch in first.items())


def accuracy_text(history: History) -> str:
    """The last epoch's accuracy and the mean of the last five, in points."""
    last = [epoch.accuracy for epoch in history.epochs[-5:]]
    return f"{last[-1]:.1f} points (mean of the last {len(last)} epochs: {mean(last):.1f})"
