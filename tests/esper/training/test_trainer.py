"""The loop on one process and on real ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from esper.control import (
    Action,
    Advance,
    Decision,
    EpochSignals,
    Germinate,
    HeuristicController,
    Prune,
    SetAlpha,
)
from esper.distributed.growth import Birth
from esper.errors import (
    ConfigError,
    EsperError,
    GrowthFailed,
    IllegalTransition,
    LifecycleDivergence,
    LoaderMismatch,
    SlotEmpty,
    SlotOccupied,
    UnknownSlot,
)
from esper.lifecycle.config import Blend
from esper.lifecycle.gates import GateVerdict
from esper.lifecycle.metrics import MetricSums
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage
from esper.model import SeedSlot
from esper.training import Controller, Growth, History, TrainConfig, Trainer, build_model
from esper.training.tasks import Batch, load_digits_task
from tests.esper.ranks import Outcome, run_ranks
from tests.esper.training.short_config import short_config


@dataclass
class Script:
    """A controller that plays a fixed plan: epoch to actions."""

    plan: dict[int, Decision]

    def decide(self, signals: EpochSignals) -> Decision:
        return self.plan.get(signals.epoch, Decision())


def _trainer(
    config: TrainConfig, controller: Controller | None = None, *, rank: int = 0, world_size: int = 1
) -> Trainer:
    task = load_digits_task(batch_size=config.batch_size, seed=config.seed, rank=rank, world_size=world_size)
    controller = controller or HeuristicController(config.heuristic, config.gates)
    group = dist.group.WORLD if world_size > 1 else None
    return Trainer(build_model(config), task, controller, config, group=group)


def _value(outcome: Outcome) -> Any:
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def _slot(records: tuple[SlotRecord, ...], slot_id: str) -> SlotRecord:
    return next(record for record in records if record.slot_id == slot_id)


def test_one_process_trains_without_a_group_and_repeats_itself() -> None:
    config = short_config(epochs=6)
    state = torch.get_rng_state()
    first, second = _trainer(config).run(), _trainer(config).run()
    assert first.same_as(second)
    assert not first.same_as(_trainer(short_config(epochs=6, seed=1)).run())
    assert first.accuracy > 50.0
    assert torch.equal(state, torch.get_rng_state())  # nothing draws from the global generator


def test_a_controller_with_other_gates_than_the_trainers_is_refused() -> None:
    config = short_config()
    task = load_digits_task(batch_size=32, seed=0)
    with pytest.raises(ConfigError, match=r"controller\.gates=GateConfig\(.*min_training_epochs=10"):
        Trainer(build_model(config), task, HeuristicController(config.heuristic), config)


def test_two_ranks_end_bit_equal() -> None:
    config = short_config(epochs=7)

    def body(rank: int) -> tuple[History, int]:
        with _trainer(config, rank=rank, world_size=2) as trainer:
            history = trainer.run()
            return history, trainer.model.fingerprint()

    (first, print_0), (second, print_1) = (_value(outcome) for outcome in run_ranks(body, 2))
    assert first.same_as(second)
    assert print_0 == print_1
    assert Stage.TRAINING in {record.stage for record in first.final}
    assert len(first.table().splitlines()) == 8


def test_a_seed_goes_through_its_whole_life_on_four_ranks() -> None:
    config = short_config(epochs=10)

    def body(rank: int) -> History:
        with _trainer(config, rank=rank, world_size=4) as trainer:
            return trainer.run()

    histories = [_value(outcome) for outcome in run_ranks(body, 4)]
    assert all(histories[0].same_as(history) for history in histories)
    lived = [_slot(result.records, "r0c0").stage for result in histories[0].epochs]
    assert list(dict.fromkeys(lived)) == [
        Stage.DORMANT,
        Stage.GERMINATED,
        Stage.TRAINING,
        Stage.BLENDING,
        Stage.HOLDING,
        Stage.FOSSILIZED,
    ]
    asked = [
        verdict.gate for result in histories[0].epochs for slot, verdict in result.verdicts if slot == "r0c0"
    ]
    assert list(dict.fromkeys(asked)) == ["G0", "G1", "G2", "G3", "G5"]


def test_a_build_that_fails_on_one_rank_leaves_every_slot_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {1: Decision((Germinate("r0c0", "norm"), Germinate("r0c1", "conv_light")))}

    def body(rank: int) -> tuple[LifecycleDivergence, tuple[SlotRecord, ...], int, int]:
        prepare = SeedSlot.prepare

        def failing(
            slot: SeedSlot, blueprint: str, generator: torch.Generator, blend: Blend | None = None
        ) -> nn.Module:
            if rank == 1 and slot.slot_id == "r0c1":
                raise MemoryError("no room")
            return prepare(slot, blueprint, generator, blend)

        monkeypatch.setattr(SeedSlot, "prepare", failing)
        with _trainer(short_config(epochs=2), Script(plan), rank=rank, world_size=3) as trainer:
            with pytest.raises(LifecycleDivergence) as raised:
                trainer.run()
            model = trainer.model
            parameters = len(list(model.parameters()))
            return raised.value, model.records(), parameters, len(list(model.host.parameters()))

    outcomes = [_value(outcome) for outcome in run_ranks(body, 3)]
    for error, records, parameters, host_parameters in outcomes:
        assert error.guilty == (1,)
        assert "germinate r0c1 conv_light: ready on ranks 0, 2; MemoryError: no room on rank 1" in str(error)
        assert {record.stage for record in records} == {Stage.DORMANT}
        assert parameters == host_parameters


def test_a_build_that_fails_everywhere_is_named_and_caused() -> None:
    trainer = _trainer(short_config(epochs=1), Script({1: Decision((Germinate("r0c0", "nosuch"),))}))
    with pytest.raises(
        GrowthFailed, match="no rank could germinate in slot 'r0c0': UnknownBlueprint"
    ) as raised:
        trainer.run()
    assert type(raised.value.__cause__).__name__ == "UnknownBlueprint"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Prune("r0c1"), SlotEmpty),
        (Prune("r0c0", -1), ConfigError),
        (SetAlpha("r0c1", 0.7), SlotEmpty),
        (SetAlpha("r0c0", 0.7), IllegalTransition),
        (SetAlpha("r9c9", 0.7), UnknownSlot),
        (Germinate("r0c0", "norm"), SlotOccupied),
        (Germinate("r0c1", "norm", "mix"), GrowthFailed),  # type: ignore[arg-type]
        (Advance("r9c9"), UnknownSlot),
        (Prune("r9c9"), UnknownSlot),
        (Germinate("r9c9", "norm"), UnknownSlot),
        (Germinate("r0c1", "nosuch"), GrowthFailed),
    ],
)
def test_a_decision_with_an_impossible_action_is_not_begun(wrong: Action, error: type[EsperError]) -> None:
    trainer = _trainer(short_config(epochs=1), Script({1: Decision((Germinate("r0c0", "norm"), wrong))}))
    with pytest.raises(error):
        trainer.run()
    assert {record.stage for record in trainer.model.records()} == {Stage.DORMANT}


def test_a_gate_that_only_one_rank_passes_is_found_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {1: Decision((Germinate("r0c0", "norm"),)), 2: Decision((Advance("r0c0"),))}

    def body(rank: int) -> tuple[LifecycleDivergence, Stage]:
        pass_gate = Growth.pass_gate

        def skipped(
            growth: Growth, slot_id: str, signals: EpochSignals, birth: Birth | None = None
        ) -> GateVerdict:
            verdict = pass_gate(growth, slot_id, signals, birth)
            return replace(verdict, passed=False) if rank == 2 and verdict.gate == "G1" else verdict

        monkeypatch.setattr(Growth, "pass_gate", skipped)
        with _trainer(short_config(epochs=3), Script(plan), rank=rank, world_size=3) as trainer:
            with pytest.raises(LifecycleDivergence) as raised:
                trainer.run()
            return raised.value, trainer.model.slots["r0c0"].stage

    for error, stage in (_value(outcome) for outcome in run_ranks(body, 3)):
        assert str(error) == (
            "ranks disagree in the growth of epoch 2: gate of r0c0: passed on ranks 0, 1; refused on rank 2"
        )
        assert error.guilty == (2,)
        assert stage is Stage.GERMINATED


def test_weights_that_differ_are_found_before_the_first_step() -> None:
    def body(rank: int) -> LifecycleDivergence:
        with _trainer(short_config(), rank=rank, world_size=3) as trainer:
            with torch.no_grad():
                next(trainer.model.parameters()).add_(rank == 2)
            with pytest.raises(LifecycleDivergence) as raised:
                trainer.run()
            return raised.value

    outcomes = [_value(outcome) for outcome in run_ranks(body, 3)]
    assert [error.guilty for error in outcomes] == [(2,)] * 3
    assert "model fingerprint" in str(outcomes[0])


def test_uneven_loaders_are_named_before_a_step() -> None:
    @dataclass(frozen=True)
    class Uneven:
        batches: int

        def announce(self, epoch: int) -> int:
            return self.batches

        def train_batches(self, epoch: int) -> Iterator[Batch]:
            raise AssertionError("no batch may be asked for")

        def test_batches(self) -> Iterator[Batch]:
            return iter(())

    def body(rank: int) -> LoaderMismatch:
        config = short_config()
        controller = Script({})
        task = Uneven(11 if rank == 1 else 12)
        with Trainer(build_model(config), task, controller, config, group=dist.group.WORLD) as trainer:
            with pytest.raises(LoaderMismatch) as raised:
                trainer.run()
            return raised.value

    for error in (_value(outcome) for outcome in run_ranks(body, 3)):
        assert error.guilty == (1,)
        assert str(error) == (
            "ranks announced different numbers of batches for epoch 1 (rank 0: 12, rank 1: 11, rank 2: 12): "
            "all must have as many, or loaders be truncate or join"
        )


def test_a_rank_that_is_asked_to_stop_stops_all_after_the_same_epoch() -> None:
    def body(rank: int) -> tuple[int, tuple[int, ...], bool]:
        class Asked(Script):
            def decide(self, signals: EpochSignals) -> Decision:
                if rank == 1 and signals.epoch == 1:
                    trainer.stop()
                return super().decide(signals)

        with _trainer(short_config(epochs=9), Asked({}), rank=rank, world_size=2) as trainer:
            history = trainer.run()
            return len(history.epochs), trainer.stopping, trainer.optimizer.state != {}

    # What was asked for after the exchange of epoch 1 the others learn in that of epoch 2.
    assert [_value(outcome) for outcome in run_ranks(body, 2)] == [(2, (1,), True)] * 2


def test_a_pruned_seed_leaves_the_optimiser_and_the_host_keeps_its_momentum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = {
        1: Decision((Germinate("r0c0", "norm"),)),
        2: Decision((Advance("r0c0"),)),
        4: Decision((Prune("r0c0"),)),
    }
    trainer = _trainer(short_config(epochs=5), Script(plan))
    first = next(trainer.model.host.parameters())
    counts: list[int] = []
    steps: list[int] = []

    def look(epoch: int, module: nn.Module) -> MetricSums:
        sums = train_epoch(epoch, module)
        counts.append(len(trainer.optimizer.state))
        steps.append(int(trainer.optimizer.state[first]["step"]))
        return sums

    train_epoch = trainer.train_epoch
    monkeypatch.setattr(trainer, "train_epoch", look)
    trainer.run()
    host = len(list(trainer.model.host.parameters()))
    seeds = counts[2] - host
    assert seeds > 0
    assert counts == [host, host, host + seeds, host + seeds, host]
    assert steps == [45, 90, 135, 180, 225]
