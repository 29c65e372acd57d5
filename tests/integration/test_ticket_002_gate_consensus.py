"""Ticket 002: consensus on a gate that some ranks do not ask.

Feared: each gate is an all_reduce of its own, so ranks with other seeds, or with an empty slot, leave the
others in it for ever, or pair their vote with another collective.

Shown: no gate communicates. Ranks exchange once an epoch for all slots, empty ones included, whatever their
stages; gates are then asked of the same averaged numbers. Seeds that differ are named (option A of the
ticket), on every rank, in the same epoch. A rank that is not there is named within its own deadline (option
C). A verdict that a rank's own numbers would not have led to is counted and told, and is no failure.

Option B, rank 0 decides for all, is not the default: its shard would judge for all, and what differs would
stay unseen. The feature flag that held DDP back is replaced by the group that is handed to the trainer,
None being one process: nothing asks whether torch.distributed is initialised.
"""

from __future__ import annotations

import random
import time

import pytest
import torch
import torch.distributed as dist

from esper.control import Decision, EpochSignals, Germinate
from esper.control.ppo import PpoMode
from esper.errors import AgreementDeadline, LifecycleDivergence
from esper.lifecycle import Stage
from esper.training import Learner
from pytest_esper_ddp.handle import DDP
from tests.esper.training.test_learning import config as learning_config
from tests.integration.miniature import PLAN, Script, alike, miniature

DEADLINE = 1.5


@pytest.mark.parametrize("mode", list(PpoMode))
@pytest.mark.parametrize("world_size", [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)])
def test_a_policy_is_learned_on_ranks_whose_networks_grow_in_other_ways(
    ddp: DDP, world_size: int, mode: PpoMode
) -> None:
    chosen = []
    with Learner(learning_config(mode, environments=1), group=dist.group.WORLD) as learner:
        for _ in range(2):
            told = learner.lesson()
            ddp.assert_same(dict(learner.learned.policy.state_dict()))
            chosen.append(told.episodes)
    assert chosen == [world_size if mode is PpoMode.PARALLEL else 1] * 2


@pytest.mark.ddp(4)
@pytest.mark.ddp_fault("germinate_alone", rank=3, epoch=2, slot="r0c1")
@pytest.mark.ddp_expect("lifecycle", guilty=[3], field="stage of r0c1", raises=LifecycleDivergence)
def test_seeds_that_differ_are_named_and_no_gate_is_asked(ddp: DDP) -> None:
    with miniature(ddp.rank, 4) as trainer:
        with pytest.raises(LifecycleDivergence) as raised:
            trainer.run()
        assert trainer.history.epochs[-1].epoch == 1
        assert trainer.model.slots["r0c0"].stage is Stage.GERMINATED
    assert "stage of r0c1: DORMANT on ranks 0, 1, 2; GERMINATED on rank 3" in str(raised.value)
    raise raised.value


@pytest.mark.parametrize("world_size", [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)])
def test_slots_in_all_stages_agree_at_once(ddp: DDP, world_size: int) -> None:
    with miniature(ddp.rank, world_size) as trainer:
        history = trainer.run()
        ddp.assert_same(alike(trainer))
    together = {tuple(record.stage.name for record in epoch.records) for epoch in history.epochs}
    assert {("TRAINING", "GERMINATED"), ("BLENDING", "TRAINING"), ("FOSSILIZED", "PRUNED")} <= together


@pytest.mark.ddp(4)
@pytest.mark.ddp_fault("local_verdict", rank=2, epoch=6)
def test_a_verdict_that_one_rank_would_not_give_is_told_and_counted(ddp: DDP) -> None:
    with miniature(ddp.rank, 4) as trainer:
        history = trainer.run()
    assert history.dissents == 1
    (dissent,) = history.epochs[5].dissent
    assert str(dissent) == "G5 of r0c0 passed; by the own numbers of rank 2 it would have failed"


class Drawing:
    """Germinates a blueprint by lot; `own` bits in place of those that all ranks have."""

    def __init__(self, own: int | None = None) -> None:
        self.own = own
        self.drawn: list[int] = []

    def decide(self, signals: EpochSignals) -> Decision:
        bits = signals.random_bits if self.own is None else self.own + signals.epoch
        self.drawn.append(bits)
        blueprint = random.Random(bits).choice(("norm", "attention", "conv_small", "conv_light", "depthwise"))
        return Decision((Germinate("r0c0", blueprint),)) if signals.epoch == 2 else Decision()


@pytest.mark.ddp(4)
def test_a_controller_that_draws_draws_alike_on_all_ranks(ddp: DDP) -> None:
    torch.manual_seed(ddp.rank)
    random.seed(ddp.rank)
    controller = Drawing()
    with miniature(ddp.rank, 4, epochs=4, controller=controller) as trainer:
        trainer.run()
        ddp.assert_same([alike(trainer), controller.drawn])
    assert len(set(controller.drawn)) == 4
    again = Drawing()
    with miniature(ddp.rank, 4, epochs=4, controller=again) as trainer:
        trainer.run()
    assert again.drawn == controller.drawn


@pytest.mark.ddp(4)
def test_a_controller_with_bits_of_its_own_is_named(ddp: DDP) -> None:
    # The blueprints by lot of bits 2, 3, 4, 5 are not all the same.
    with (
        miniature(ddp.rank, 4, epochs=4, controller=Drawing(ddp.rank)) as trainer,
        pytest.raises(LifecycleDivergence, match="decision") as raised,
    ):
        trainer.run()
    ddp.assert_same(str(raised.value))
    assert trainer.model.slots["r0c0"].stage is Stage.DORMANT


# Which ones are missing is the agreement's own affair, and tried out with its own tests.
@pytest.mark.parametrize(
    "missing",
    [
        (2,),
        (0, 3),
        pytest.param((0,), marks=pytest.mark.stress),
        pytest.param((1, 2), marks=pytest.mark.stress),
    ],
    ids=str,
)
@pytest.mark.ddp(4, lockstep="off")
def test_ranks_that_are_not_there_are_named_in_time(ddp: DDP, missing: tuple[int, ...]) -> None:
    trainer = miniature(ddp.rank, 4, epochs=2, agreement={"deadline": DEADLINE}, watchdog={"on": False})
    agree = trainer.agree
    began: list[float] = []

    def late(epoch: int, *given: object) -> object:
        if epoch == 2 and ddp.rank in missing:
            # Past all that the others may take; it then meets their verdict.
            time.sleep(DEADLINE + 0.7)
        began.append(time.monotonic())
        return agree(epoch, *given)  # type: ignore[arg-type]

    trainer.agree = late  # type: ignore[method-assign, assignment]
    with pytest.raises(AgreementDeadline) as raised:
        trainer.run()
    assert raised.value.guilty == missing
    names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    assert f"the agreement of epoch 2 was called off after 1.5 s: {names} of 4 did not come" in str(
        raised.value
    )
    assert "monitored" in str(raised.value)
    if ddp.rank not in missing:
        assert time.monotonic() - began[-1] < DEADLINE + 0.5
    assert len(trainer.history.epochs) == 1


@pytest.mark.ddp(2)
def test_without_a_group_the_same_code_is_one_process(ddp: DDP) -> None:
    # torch.distributed is initialised, and nobody asks: two ranks train two models.
    plan = Script({1: Decision((Germinate("r0c1", "norm"),))} if ddp.rank else PLAN)
    trainer = miniature(controller=plan)
    trainer.run()
    assert (trainer.model.records()[0].stage is Stage.FOSSILIZED) == (ddp.rank == 0)
