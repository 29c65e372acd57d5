"""Ticket 003: rank 0's decision is broadcast per slot, and the order of slots is taken for granted.

Feared: a rank that goes through its slots in another order takes one slot's decision for another's. Equal
numbers of equal collectives never hang, so this corrupts silently, and the monitored barrier that one
review recommends would pass.

Shown: slots of any number are in the same order on all ranks, because the order, the set and each slot's
name are in what ranks compare; another order, another set, or the same decision under another slot's name
is named before anything is applied. That is detection, not a time-out. Collectives of equal shape that a
program does issue per slot are told apart by tags. With `debug` each slot's turn is logged with its rank
and a barrier runs before each exchange. `torch.distributed.collective_fingerprint`, which another review
recommends, does not exist.
"""

from __future__ import annotations

import logging

import pytest
import torch
import torch.distributed as dist

from esper.control import Decision, Germinate
from esper.errors import LifecycleDivergence
from esper.lifecycle import Stage
from esper.lockstep import tag
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import Script, alike, miniature


@pytest.mark.parametrize("world_size", [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)])
def test_several_slots_have_their_turns_in_equal_order(
    ddp: DDP, world_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "esper.distributed")
    host = {"width": 1, "blocks": 4}
    with miniature(
        ddp.rank, world_size, epochs=3, host=host, agreement={"debug": True, "deadline": 10.0}
    ) as trainer:
        trainer.run()
        ddp.assert_same(alike(trainer))
    turns = [message.partition(": turn of slot ")[2] for message in caplog.messages if "turn of" in message]
    ddp.assert_same(turns, "turns")
    assert [turn.partition(",")[0] for turn in turns[:4]] == ["r0c0", "r0c1", "r0c2", "r0c3"]
    assert all(f"rank {ddp.rank}, epoch" in message for message in caplog.messages if "turn of" in message)


@pytest.mark.ddp(4)
@pytest.mark.ddp_fault("slot_order", rank=1, epoch=4)
@pytest.mark.ddp_expect("lifecycle", guilty=[1], field="slots", raises=LifecycleDivergence)
def test_another_order_is_detected_and_nothing_applied(ddp: DDP) -> None:
    with miniature(ddp.rank, 4) as trainer:
        with pytest.raises(LifecycleDivergence) as raised:
            trainer.run()
        assert len(trainer.history.epochs) == 3
        assert trainer.model.slots["r0c1"].stage is Stage.TRAINING
    assert "slots: r0c0, r0c1 on ranks 0, 2, 3; r0c1, r0c0 on rank 1" in str(raised.value)
    raise raised.value


@pytest.mark.ddp(4)
def test_another_set_of_slots_is_detected_before_the_first_step(ddp: DDP) -> None:
    blocks = 3 if ddp.rank == 2 else 2
    with (
        miniature(ddp.rank, 4, host={"width": 2, "blocks": blocks}) as trainer,
        pytest.raises(LifecycleDivergence) as raised,
    ):
        trainer.run()
    assert raised.value.guilty == (2,)
    assert "slots" in {difference.field for difference in raised.value.fields} or "config" in str(
        raised.value
    )
    assert not trainer.history.epochs


@pytest.mark.ddp(4)
def test_the_same_decision_under_another_slots_name_is_detected(ddp: DDP) -> None:
    slot_id = "r0c1" if ddp.rank == 3 else "r0c0"
    plan = Script({1: Decision((Germinate(slot_id, "norm"),))})
    with miniature(ddp.rank, 4, controller=plan) as trainer:
        with pytest.raises(LifecycleDivergence) as raised:
            trainer.run()
        assert {record.stage for record in trainer.model.records()} == {Stage.DORMANT}
    assert raised.value.guilty == (3,)
    assert "actions: germinate r0c0 norm on ranks 0, 1, 2; germinate r0c1 norm on rank 3" in str(raised.value)


@pytest.mark.ddp(4)
@pytest.mark.ddp_expect("order", guilty=[1], tag="gate:r0c0")
def test_a_program_that_votes_per_slot_is_caught_by_its_tags(ddp: DDP) -> None:
    # The earlier system's way: as many collectives of the same size, so nothing would hang.
    for slot_id in ["r0c1", "r0c0"] if ddp.rank == 1 else ["r0c0", "r0c1"]:
        with tag(f"gate:{slot_id}"):
            dist.all_reduce(torch.ones(1))
