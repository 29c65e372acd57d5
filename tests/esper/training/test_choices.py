"""A controller chooses how a seed is mixed, where its alpha goes, and how fast it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from esper.control import Action, Advance, Decision, Germinate, Prune, SetAlpha
from esper.errors import AlphaNotHolding, ConfigError, EsperError, IllegalTransition, LifecycleDivergence
from esper.lifecycle import Blend, SlotRecord, Stage
from esper.training import Checkpoints, History, Trainer, build_model
from esper.training.deeds import deeds
from esper.training.log import RunLog, read_log
from tests.esper.ranks import run_ranks
from tests.esper.training.lives import Script, tiny_task, tiny_trainer, whole_life


def plan(*more: tuple[int, Action]) -> Script:
    """A seed in r0c0 that is mixed by gate and held from epoch 6 on, and `more` than that by epoch."""
    life = whole_life()
    del life[8]
    first = (Germinate("r0c0", "conv_light", Blend.GATE), Germinate("r0c1", "norm", Blend.MULTIPLY))
    life[1] = Decision((*first, Germinate("r0c2", "norm")))
    for epoch, action in more:
        life[epoch] = Decision((*life.get(epoch, Decision()).actions, action))
    return Script(life)


CHOICES = (
    (8, SetAlpha("r0c0", 0.7, 3)),
    (12, Advance("r0c0")),
    (13, SetAlpha("r0c0", 1, 0)),
    (15, Prune("r0c0", 4)),
    (16, Prune("r0c1", 4)),
)


@pytest.fixture(scope="module")
def history() -> History:
    """A run of twenty epochs with those choices."""
    return tiny_trainer(plan(*CHOICES), epochs=20).run()


def lived(history: History, slot: int) -> list[SlotRecord]:
    return [result.records[slot] for result in history.epochs]


def test_each_seed_is_mixed_as_its_decision_says(history: History) -> None:
    blends = [record.blend for record in history.epochs[1].records]
    assert blends == [Blend.GATE, Blend.MULTIPLY, Blend.ADD]
    assert {record.blend for record in lived(history, 0)[1:15]} == {Blend.GATE}
    assert [record.blend for record in history.final] == [None, None, Blend.ADD]


def test_alpha_goes_where_it_is_sent_and_out_as_fast_as_asked(history: History) -> None:
    records = lived(history, 0)
    assert [record.alpha for record in records[7:11]] == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert [record.stage for record in records[7:13]] == [
        Stage.HOLDING,
        *[Stage.BLENDING] * 4,
        Stage.HOLDING,
    ]
    assert [(record.stage, record.alpha) for record in records[13:15]] == [(Stage.BLENDING, 1.0)] * 2
    assert [record.alpha for record in records[15:19]] == [0.75, 0.5, 0.25, 0.0]
    assert [record.stage for record in records[17:19]] == [Stage.BLENDING, Stage.PRUNED]
    assert lived(history, 1)[16].stage is Stage.PRUNED  # it was not mixed in, and left at once


def test_what_was_done_is_told_with_how(history: History) -> None:
    told = {result.epoch: deeds(result) for result in history.epochs}
    assert told[1] == [
        "r0c0: germinate conv_light by gate",
        "r0c1: germinate norm by multiply",
        "r0c2: germinate norm",
    ]
    assert told[8] == ["r0c0: alpha to 0.7 over 3 epochs"]
    assert told[13] == ["r0c0: alpha to 1 at once"]
    assert told[15][0].startswith("r0c0: prune conv_light over 4 epochs in epoch 2 of BLENDING, contribution")
    assert told[16][0].startswith("r0c1: prune norm in epoch 15 of GERMINATED, contribution")


def test_the_log_has_the_choices(history: History, tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.start(tiny_trainer().config, world_size=1, parameters=3, resumed=0)
    for last in range(1, 21):
        log.epoch(History(history.epochs[:last], history.final), parameters=3)
    log.close()
    assert read_log(tmp_path)[1].same_as(history)
    again = History.from_json(history.to_json())
    assert again.same_as(history)
    assert again.epochs[0].decision == history.epochs[0].decision
    assert again.epochs[12].decision.actions == (SetAlpha("r0c0", 1, 0),)


@pytest.mark.parametrize("epochs", [3, 9, 14])
def test_a_run_that_goes_on_mixes_its_seeds_as_before(tmp_path: Path, history: History, epochs: int) -> None:
    stopped = tiny_trainer(plan(*CHOICES), epochs=epochs)
    stopped.run()
    Checkpoints(tmp_path).save(stopped)
    again = tiny_trainer(plan(*CHOICES), epochs=20)
    Checkpoints(tmp_path).resume(again)
    assert again.run().same_as(history)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ([(5, SetAlpha("r0c0", 0.7))], AlphaNotHolding),
        ([(3, SetAlpha("r0c0", 0.7))], IllegalTransition),
        ([(8, SetAlpha("r0c0", 0.0))], ConfigError),
        ([(8, SetAlpha("r0c0", 1.5))], ConfigError),
        ([(8, SetAlpha("r0c0", 0.7, -1))], ConfigError),
        ([(8, SetAlpha("r0c0", 0.7, 2)), (8, SetAlpha("r0c0", 0.5, 2))], AlphaNotHolding),
        ([(8, Prune("r0c0", 2)), (8, SetAlpha("r0c0", 0.5))], AlphaNotHolding),
    ],
)
def test_an_alpha_that_cannot_be_set_is_refused_before_anything_changes(
    more: list[tuple[int, Action]], error: type[EsperError]
) -> None:
    trainer = tiny_trainer(plan((more[0][0], Advance("r0c1")), *more), epochs=9)
    seen: list[tuple[SlotRecord, ...]] = []
    apply = trainer.growth.apply

    def watched(*given: Any) -> Any:
        seen.append(trainer.model.records())
        return apply(*given)

    trainer.growth.apply = watched  # type: ignore[method-assign, assignment]
    with pytest.raises(error):
        trainer.run()
    assert trainer.model.records() == seen[-1]


def on_ranks(world_size: int, script: Callable[[int], Script], epochs: int) -> list[tuple[str, Any]]:
    """Of each rank what it raised, in words, and its slots at the end."""

    def body(rank: int) -> tuple[str, tuple[SlotRecord, ...]]:
        task = tiny_task(rank=rank, world_size=world_size)
        config = tiny_trainer(epochs=epochs).config
        with Trainer(build_model(config), task, script(rank), config, group=dist.group.WORLD) as trainer:
            try:
                trainer.run()
            except (EsperError, LifecycleDivergence) as error:
                return f"{type(error).__name__}: {error}", trainer.model.records()
            return "", trainer.model.records()

    outcomes = run_ranks(body, world_size)
    assert [outcome.error for outcome in outcomes] == [None] * world_size
    return [outcome.value for outcome in outcomes]


@pytest.mark.parametrize(
    ("usual", "odd", "said"),
    [
        (
            Germinate("r0c0", "norm", Blend.ADD),
            Germinate("r0c0", "norm", Blend.MULTIPLY),
            "actions: germinate r0c0 norm by add on ranks 0, 2; germinate r0c0 norm by multiply on rank 1",
        ),
        (
            Germinate("r0c0", "norm"),
            Germinate("r0c0", "norm", Blend.ADD),
            "actions: germinate r0c0 norm on ranks 0, 2; germinate r0c0 norm by add on rank 1",
        ),
    ],
)
def test_ranks_that_choose_another_blend_are_named_before_a_seed_is_born(
    usual: Action, odd: Action, said: str
) -> None:
    for error, records in on_ranks(3, lambda rank: Script({1: Decision((odd if rank == 1 else usual,))}), 2):
        assert error.startswith(f"{LifecycleDivergence.__name__}: ranks disagree in the growth of epoch 1")
        assert said in error
        assert {record.stage for record in records} == {Stage.DORMANT}


def test_ranks_that_send_alpha_elsewhere_are_named_and_no_alpha_moves() -> None:
    outcomes = on_ranks(3, lambda rank: plan((8, SetAlpha("r0c0", 0.5 if rank == 2 else 0.7, 3))), 9)
    for error, records in outcomes:
        assert (
            "actions: set alpha r0c0 to 0.7 over 3 epochs on ranks 0, 1; "
            "set alpha r0c0 to 0.5 over 3 epochs on rank 2"
        ) in error
        assert (records[0].stage, records[0].alpha_target) == (Stage.HOLDING, 1.0)


def test_an_impossible_alpha_is_the_same_error_on_every_rank() -> None:
    (first, records), *others = on_ranks(2, lambda rank: plan((5, SetAlpha("r0c0", 0.7))), 6)
    assert first.startswith("AlphaNotHolding: ")
    assert others == [(first, records)]


def test_ranks_live_through_the_choices_alike() -> None:
    (error, records), *others = on_ranks(2, lambda rank: plan(*CHOICES), 17)
    assert error == ""
    assert others == [("", records)]
    assert [record.blend for record in records] == [Blend.GATE, None, Blend.ADD]
