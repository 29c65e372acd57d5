"""A run that is being destroyed goes back to where it was good."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.control import Advance, Decision, Germinate, Prune
from esper.errors import TrainingDiverged
from esper.lifecycle import MetricSums, SlotRecord, Stage
from esper.model.blueprints import registry
from esper.training import History, TrainConfig, Trainer, build_model
from esper.training.tasks import Batch, ShardedTask
from tests.esper.ranks import Outcome, run_ranks
from tests.esper.training.lives import TINY, Script, tiny_task, tiny_trainer, whole_life


class Poison(nn.Module):
    """A seed that is well in its first passes and not finite from then on."""

    healthy = 6  # passes: one epoch has three

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        return x * self.weight * (1.0 if self.passes <= self.healthy else math.nan)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {**registry._REGISTRY, ("cnn", "poison"): Poison})


PLAN = {
    1: Decision((Germinate("r0c1", "poison"),)),
    2: Decision((Advance("r0c1"),)),
    7: Decision((Germinate("r0c0", "norm"),)),
}


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("poison")
def test_a_seed_that_is_not_finite_never_reaches_the_hosts_weights() -> None:
    trainer = tiny_trainer(Script(PLAN), epochs=5, governor={"enabled": False})
    trainer.run()
    healthy = tiny_trainer(Script(PLAN), epochs=4)
    healthy.run()  # its poison is still well
    assert healthy.history.epochs[-1].panicking == ()
    assert math.isnan(trainer.history.epochs[-1].loss)
    assert trainer.state_dict()["steps"] == healthy.state_dict()["steps"] == 12
    weights = dict(trainer.model.host.named_parameters())
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert all(torch.equal(weights[name], each) for name, each in healthy.model.host.named_parameters())


@pytest.mark.usefixtures("poison")
def test_nor_do_its_values_stay_in_the_hosts_statistics() -> None:
    """Without a governor that would bring them back: once the seed is out, the model is as good as it was."""
    plan = {**PLAN, 5: Decision((Prune("r0c1"),))}
    trainer = tiny_trainer(Script(plan), epochs=6, governor={"enabled": False})
    trainer.run()
    assert [math.isfinite(result.loss) for result in trainer.history.epochs] == [*[True] * 4, False, True]
    assert all(torch.isfinite(buffer).all() for buffer in trainer.model.host.buffers())
    assert math.isfinite(trainer.evaluate()[0].loss)


@pytest.mark.usefixtures("poison")
def test_the_epoch_is_undone_the_seed_taken_out_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_trainer(Script(PLAN), epochs=12)
    good: dict[int, dict[str, Tensor]] = {}
    records: dict[int, tuple[SlotRecord, ...]] = {}
    trainer._announced = ((0, 3),)
    for epoch in range(1, 13):
        trainer.run_epoch(epoch)
        good[epoch], records[epoch] = bits(trainer.model.host), trainer.model.records()
    results = trainer.history.epochs
    assert [result.epoch for result in results if result.panicking] == [5]
    assert results[4].panicking == (0,)
    assert math.isnan(results[4].loss)
    assert results[4].decision == Decision()
    assert [record.stage for record in records[5]] == [Stage.DORMANT, Stage.PRUNED, Stage.DORMANT]
    assert same(good[5], good[4])
    assert not same(good[6], good[5])
    assert all(math.isfinite(result.loss) for result in results if result.epoch != 5)
    assert records[12][0].stage is Stage.GERMINATED
    assert records[12][1].stage is Stage.DORMANT
    assert "epoch 5 is undone: loss nan" in caplog.text


@pytest.mark.usefixtures("poison")
def test_fossils_stay_and_keep_their_bits() -> None:
    plan = whole_life(("r0c0",))
    plan[9] = Decision((Germinate("r0c1", "poison"),))
    plan[10] = Decision((Advance("r0c1"),))
    trainer = tiny_trainer(Script(plan), epochs=12)
    trainer.run()
    fossil = bits(trainer.model.slots["r0c0"])
    trainer.config = replace(trainer.config, epochs=13)
    trainer._announced = ((0, 3),)
    trainer.run_epoch(13)
    assert trainer.history.epochs[-1].panicking == (0,)
    assert [record.stage for record in trainer.model.records()][:2] == [Stage.FOSSILIZED, Stage.PRUNED]
    assert same(bits(trainer.model.slots["r0c0"]), fossil)


def test_the_optimiser_goes_back_with_the_weights() -> None:
    """After an epoch that is undone all goes on as if it had not been, from the same data."""

    @dataclass(frozen=True)
    class Spoilt:
        inner: ShardedTask
        epoch: int

        def announce(self, epoch: int) -> int:
            return self.inner.announce(epoch)

        def train_batches(self, epoch: int) -> Iterator[Batch]:
            for inputs, classes in self.inner.train_batches(epoch - (epoch > self.epoch)):
                yield (inputs * math.nan if epoch == self.epoch else inputs), classes

        def test_batches(self) -> Iterator[Batch]:
            return self.inner.test_batches()

    plain, spoilt = tiny_trainer(Script(), epochs=5), tiny_trainer(Script(), epochs=6)
    spoilt.task = Spoilt(tiny_task(), 3)
    plain.run()
    spoilt.run()
    assert [result.epoch for result in spoilt.history.epochs if result.panicking] == [3]
    assert spoilt.model.fingerprint() == plain.model.fingerprint()


def test_a_run_that_stays_destroyed_is_ended_by_name() -> None:
    trainer = tiny_trainer(Script(), epochs=20, governor={"max_rollbacks": 2})
    inputs, classes = tiny_task().train
    trainer.task = replace(tiny_task(), train=(inputs * math.nan, classes))
    with pytest.raises(TrainingDiverged) as caught:
        trainer.run()
    assert (caught.value.epoch, caught.value.rollbacks, caught.value.limit) == (3, 2, 2)


@pytest.mark.usefixtures("poison")
def test_one_ranks_panic_is_everybodys_in_the_same_epoch() -> None:
    def body(rank: int) -> tuple[History, int]:
        config = TrainConfig.from_dict({**TINY, "epochs": 5})
        task = replace(tiny_task(), rank=rank, world_size=2)
        with Trainer(build_model(config), task, Script(PLAN), config, group=dist.group.WORLD) as trainer:
            panics = trainer.safeguard.panics

            def shaken(train: MetricSums, test: MetricSums) -> bool:
                return panics(train, test) or (rank == 1 and len(trainer.history.epochs) == 2)

            trainer.safeguard.panics = shaken  # type: ignore[method-assign]
            history = trainer.run()
            return history, trainer.model.fingerprint()

    outcomes = run_ranks(body, 2)
    (first, print_0), (second, print_1) = (_value(outcome) for outcome in outcomes)
    assert first.same_as(second)
    assert print_0 == print_1
    assert [result.panicking for result in first.epochs] == [(), (), (1,), (), ()]


def _value(outcome: Outcome) -> tuple[History, int]:
    if outcome.error is not None:
        raise outcome.error
    value: tuple[History, int] = outcome.value
    return value
