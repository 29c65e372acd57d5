"""What may be chosen: what a slot permits, and no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from esper.control import Advance, Decision, Germinate, Prune, SetAlpha
from esper.control.ppo import Choice, Op
from esper.lifecycle import AlphaMode, GateConfig, SlotMeasurement, SlotRecord, Stage
from esper.lifecycle.config import Blend
from tests.esper.control.ppo.views import HEALTHY, epoch, slot
from tests.esper.control.ppo.worlds import SPACE

GATES = GateConfig()
RISING: dict[str, Any] = {"alpha_mode": AlphaMode.UP, "alpha": 0.5, "ticks_left": 2}
LEAVING: dict[str, Any] = {"alpha_mode": AlphaMode.DOWN, "alpha": 0.5, "alpha_target": 0.0, "ticks_left": 2}
SINKING: dict[str, Any] = {**LEAVING, "alpha_target": 0.3}
NEVER = SlotMeasurement()


def permitted(record: SlotRecord, measured: SlotMeasurement = HEALTHY) -> set[Op]:
    """The operations that the first slot permits, WAIT left out."""
    found = SPACE.masks(epoch(record, measured=measured), GATES)
    assert found.op[Op.WAIT]
    assert not any(found.slot[Op.WAIT])
    return {op for op in Op if found.slot[op][0]}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (slot(Stage.DORMANT), {Op.GERMINATE}),
        (slot(Stage.GERMINATED), {Op.ADVANCE, Op.PRUNE}),
        (slot(Stage.TRAINING), {Op.ADVANCE, Op.PRUNE}),
        (slot(Stage.BLENDING), {Op.ADVANCE, Op.SET_ALPHA, Op.PRUNE}),
        (slot(Stage.BLENDING, **RISING), {Op.PRUNE}),
        (slot(Stage.BLENDING, **SINKING), {Op.PRUNE}),
        (slot(Stage.BLENDING, **LEAVING), set()),
        (slot(Stage.HOLDING), {Op.FOSSILIZE, Op.SET_ALPHA, Op.PRUNE}),
        (slot(Stage.HOLDING, **LEAVING), set()),
        (slot(Stage.FOSSILIZED), set()),
        (slot(Stage.PRUNED), set()),
        (slot(Stage.EMBARGOED), set()),
        (slot(Stage.RESETTING), set()),
    ],
    ids=lambda value: value.stage.name if isinstance(value, SlotRecord) else "",
)
def test_what_a_stage_permits(record: SlotRecord, expected: set[Op]) -> None:
    assert permitted(record) == expected


@pytest.mark.parametrize(
    ("changes", "measured", "stage", "op"),
    [
        ({}, replace(HEALTHY, gradient_ratio=0.0), Stage.TRAINING, Op.ADVANCE),
        ({"epochs_in_stage": 1}, HEALTHY, Stage.TRAINING, Op.ADVANCE),
        ({"epochs_in_stage": 1}, HEALTHY, Stage.BLENDING, Op.ADVANCE),
        ({}, replace(HEALTHY, contribution=0.0), Stage.HOLDING, Op.FOSSILIZE),
        ({}, SlotMeasurement(), Stage.HOLDING, Op.FOSSILIZE),
    ],
)
def test_a_step_whose_gate_would_not_open_is_no_choice(
    changes: dict[str, int], measured: SlotMeasurement, stage: Stage, op: Op
) -> None:
    assert op in permitted(slot(stage))
    assert op not in permitted(slot(stage, **changes), measured)


def test_an_operation_is_open_where_some_slot_permits_it() -> None:
    masks = SPACE.masks(epoch(slot(Stage.FOSSILIZED), slot(Stage.HOLDING, 1), slot(Stage.DORMANT, 2)), GATES)
    assert {op for op in Op if masks.op[op]} == {
        Op.WAIT, Op.GERMINATE, Op.SET_ALPHA, Op.PRUNE, Op.FOSSILIZE
    }  # fmt: skip
    assert masks.slot[Op.GERMINATE] == (False, False, True)
    assert masks.slot[Op.FOSSILIZE] == (False, True, False)


def test_alpha_is_not_sent_to_where_it_is() -> None:
    masks = SPACE.masks(epoch(slot(Stage.HOLDING), slot(Stage.HOLDING, 1, alpha_target=0.5)), GATES)
    assert masks.target[:2] == ((True, False), (False, True))
    alone = replace(SPACE, targets=(1.0,))
    assert not alone.masks(epoch(slot(Stage.HOLDING)), GATES).op[Op.SET_ALPHA]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(Op.WAIT), Decision()),
        (Choice(Op.GERMINATE, 2, 1, 1), Decision((Germinate("r0c2", "conv_light", Blend.GATE),))),
        (Choice(Op.ADVANCE, 1), Decision((Advance("r0c1"),))),
        (Choice(Op.FOSSILIZE, 1), Decision((Advance("r0c1"),))),
        (Choice(Op.SET_ALPHA, 0, target=1, tempo=1), Decision((SetAlpha("r0c0", 1.0, 5),))),
        (Choice(Op.PRUNE, 0, tempo=1), Decision((Prune("r0c0", 5),))),
    ],
)
def test_what_a_choice_tells_the_trainer(choice: Choice, expected: Decision) -> None:
    assert SPACE.decision(choice) == expected


def test_where_nothing_may_be_done_waiting_is_left() -> None:
    masks = SPACE.only_wait()
    assert masks.op == (True, False, False, False, False, False)
    assert not any(map(any, masks.slot))
