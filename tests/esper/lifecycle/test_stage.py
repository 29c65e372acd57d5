"""The table of the design, written out once more."""

import pytest

from esper.lifecycle import TRANSITIONS, Stage, can_move, has_seed, in_cooldown, in_forward, next_stage


def test_the_codes_are_a_format() -> None:
    assert {stage.name: int(stage) for stage in Stage} == {
        "DORMANT": 1,
        "GERMINATED": 2,
        "TRAINING": 3,
        "BLENDING": 4,
        "HOLDING": 6,
        "FOSSILIZED": 7,
        "PRUNED": 8,
        "EMBARGOED": 9,
        "RESETTING": 10,
    }


def test_the_steps() -> None:
    steps = {current.name: [target.name for target in targets] for current, targets in TRANSITIONS.items()}
    assert steps == {
        "DORMANT": ["GERMINATED"],
        "GERMINATED": ["TRAINING", "PRUNED"],
        "TRAINING": ["BLENDING", "PRUNED"],
        "BLENDING": ["HOLDING", "PRUNED"],
        "HOLDING": ["FOSSILIZED", "BLENDING", "PRUNED"],
        "FOSSILIZED": [],
        "PRUNED": ["EMBARGOED"],
        "EMBARGOED": ["RESETTING"],
        "RESETTING": ["DORMANT"],
    }


@pytest.mark.parametrize("stage", Stage)
def test_the_first_step_leads_on(stage: Stage) -> None:
    assert next_stage(stage) == (TRANSITIONS[stage][0] if TRANSITIONS[stage] else None)
    assert all(can_move(stage, target) == (target in TRANSITIONS[stage]) for target in Stage)


def test_what_a_stage_means() -> None:
    forward = [stage.name for stage in Stage if in_forward(stage)]
    assert forward == ["TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"]
    assert [stage.name for stage in Stage if has_seed(stage)] == ["GERMINATED", *forward]
    assert [stage.name for stage in Stage if in_cooldown(stage)] == ["PRUNED", "EMBARGOED", "RESETTING"]
