"""The life that the other tests disturb, undisturbed."""

from __future__ import annotations

from itertools import groupby

import pytest

from esper.lifecycle import Stage
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import EPOCHS, STEPS, alike, miniature

LIVES = {
    "r0c0": ["DORMANT", "GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"],
    "r0c1": ["DORMANT", "GERMINATED", "TRAINING", "BLENDING", "PRUNED", "EMBARGOED", "RESETTING", "DORMANT",
             "GERMINATED"],
}  # fmt: skip


@pytest.mark.parametrize("world_size", [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)])
def test_it_is_whole_and_the_same_on_every_rank(ddp: DDP, world_size: int) -> None:
    with miniature(ddp.rank, world_size) as trainer:
        history = trainer.run()
        ddp.assert_same(alike(trainer))
    assert [result.epoch for result in history.epochs] == list(range(1, EPOCHS + 1))
    assert trainer.state_dict()["steps"] == EPOCHS * STEPS
    for index, (slot_id, life) in enumerate(LIVES.items()):
        every = [result.records[index] for result in history.epochs] + [history.final[index]]
        assert {record.slot_id for record in every} == {slot_id}
        assert [stage.name for stage, _ in groupby(record.stage for record in every)] == life
    gates = [verdict.gate for result in history.epochs for _, verdict in result.verdicts]
    assert set(gates) == {"G0", "G1", "G2", "G3", "G5"}
    assert all(verdict.passed for result in history.epochs for _, verdict in result.verdicts)
    assert history.final[0].stage is Stage.FOSSILIZED
