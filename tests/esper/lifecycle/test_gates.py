"""Gates at, just under and without each of their thresholds."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ConfigError, UnguardedStage
from esper.lifecycle import GATES, AlphaMode, GateConfig, GateVerdict, SlotMetrics, Stage, evaluate_gate

STRICT = GateConfig()
PERMISSIVE = GateConfig(permissive=True)
# Each gate's metrics exactly at all its thresholds.
AT = {
    Stage.GERMINATED: SlotMetrics(
        Stage.DORMANT, 0, 0.0, 0.0, AlphaMode.HOLD, blueprint_known=True, shape_preserved=True
    ),
    Stage.TRAINING: SlotMetrics(Stage.GERMINATED, 0, 0.0, 0.0, AlphaMode.HOLD),
    Stage.BLENDING: SlotMetrics(
        Stage.TRAINING,
        10,
        0.0,
        0.0,
        AlphaMode.HOLD,
        improvement=0.5,
        gradient_ratio=0.10,
        gradient_health=0.7,
    ),
    Stage.HOLDING: SlotMetrics(Stage.BLENDING, 10, 0.7, 0.7, AlphaMode.HOLD),
    Stage.FOSSILIZED: SlotMetrics(
        Stage.HOLDING, 1, 0.7, 0.7, AlphaMode.HOLD, contribution=1.0, gradient_health=0.7
    ),
}
SHORT = [
    (Stage.GERMINATED, "blueprint_known", False),
    (Stage.GERMINATED, "shape_preserved", False),
    (Stage.GERMINATED, "blueprint_known", None),
    (Stage.GERMINATED, "shape_preserved", None),
    (Stage.TRAINING, "stage", Stage.TRAINING),
    (Stage.BLENDING, "improvement", math.nextafter(0.5, 0.0)),
    (Stage.BLENDING, "improvement", None),
    (Stage.BLENDING, "improvement", math.nan),
    (Stage.BLENDING, "epochs_in_stage", 9),
    (Stage.BLENDING, "gradient_ratio", math.nextafter(0.10, 0.0)),
    (Stage.BLENDING, "gradient_ratio", None),
    (Stage.HOLDING, "alpha", math.nextafter(0.7, 0.0)),
    (Stage.HOLDING, "alpha_mode", AlphaMode.UP),
    (Stage.HOLDING, "epochs_in_stage", 9),
    (Stage.FOSSILIZED, "contribution", math.nextafter(1.0, 0.0)),
    (Stage.FOSSILIZED, "contribution", None),
    (Stage.FOSSILIZED, "gradient_health", math.nextafter(0.7, 0.0)),
    (Stage.FOSSILIZED, "gradient_health", None),
    (Stage.FOSSILIZED, "exploding", True),
]
CHECK_OF = {"alpha": "alpha_holds", "alpha_mode": "alpha_holds", "exploding": "not_exploding"}


def verdict(target: Stage, config: GateConfig = STRICT, **changes: Any) -> GateVerdict:
    return evaluate_gate(target, replace(AT[target], **changes), config)


@pytest.mark.parametrize("config", [STRICT, PERMISSIVE], ids=["strict", "permissive"])
@pytest.mark.parametrize("target", AT)
def test_at_its_thresholds_a_gate_passes(target: Stage, config: GateConfig) -> None:
    found = verdict(target, config)
    assert found.gate == GATES[target]
    assert found.passed, str(found)
    assert found.failed == ()


@pytest.mark.parametrize(("target", "field", "value"), SHORT)
def test_just_under_one_of_them_that_check_fails(target: Stage, field: str, value: Any) -> None:
    found = verdict(target, **{field: value})
    assert not found.passed
    assert [check.name for check in found.failed] == [CHECK_OF.get(field, field)]


@pytest.mark.parametrize(
    ("target", "field", "value", "passed"),
    [
        (Stage.BLENDING, "improvement", None, True),
        (Stage.BLENDING, "gradient_ratio", None, True),
        (Stage.BLENDING, "epochs_in_stage", 9, False),
        (Stage.BLENDING, "gradient_health", None, False),
        (Stage.BLENDING, "gradient_health", 0.69, False),
        (Stage.BLENDING, "exploding", True, False),
        (Stage.HOLDING, "epochs_in_stage", 0, True),
        (Stage.HOLDING, "alpha_mode", AlphaMode.DOWN, False),
        (Stage.FOSSILIZED, "contribution", -3.0, True),
        (Stage.FOSSILIZED, "contribution", None, False),
        (Stage.FOSSILIZED, "contribution", math.nan, False),
        (Stage.FOSSILIZED, "gradient_health", 0.69, False),
        (Stage.FOSSILIZED, "exploding", True, False),
    ],
)
def test_what_permissive_asks_for(target: Stage, field: str, value: object, passed: bool) -> None:
    assert verdict(target, PERMISSIVE, **{field: value}).passed is passed


def test_strict_blending_does_not_ask_for_health() -> None:
    assert verdict(Stage.BLENDING, gradient_health=None, exploding=True).passed


@pytest.mark.parametrize("improvement", [0.0, -3.0, None, math.nan])
def test_from_some_epoch_on_blending_asks_for_health_instead_of_the_hosts_gain(
    improvement: float | None,
) -> None:
    late: dict[str, Any] = {"improvement": improvement, "epochs_in_stage": 20}
    assert not verdict(Stage.BLENDING, **{**late, "epochs_in_stage": 19}).passed
    assert verdict(Stage.BLENDING, **late).passed
    short: list[dict[str, Any]] = [
        {"gradient_ratio": 0.09},
        {"gradient_health": 0.69},
        {"gradient_health": None},
        {"exploding": True},
    ]
    for changes in short:
        assert not verdict(Stage.BLENDING, **late, **changes).passed
    found = verdict(Stage.BLENDING, **{**late, "improvement": None}).checks[0]
    assert (found.name, found.found) == (
        "improvement",
        "never measured; not asked for from epoch 20 in the stage on",
    )


def test_a_host_that_gains_is_asked_for_it_alone_whenever() -> None:
    assert verdict(Stage.BLENDING, epochs_in_stage=50, gradient_health=None).passed


def test_alpha_at_target_0_is_not_full() -> None:
    assert not verdict(Stage.HOLDING, alpha=0.0, alpha_target=0.0).passed


@pytest.mark.parametrize(
    ("target", "changes", "score"),
    [
        (Stage.GERMINATED, {}, 1.0),
        (Stage.GERMINATED, {"shape_preserved": False}, 0.0),
        (Stage.TRAINING, {}, 1.0),
        (Stage.TRAINING, {"stage": Stage.HOLDING}, 0.0),
        (Stage.BLENDING, {"improvement": 2.0}, 0.4),
        (Stage.BLENDING, {"improvement": 50.0}, 1.0),
        (Stage.BLENDING, {"improvement": -1.0}, 0.0),
        (Stage.BLENDING, {"improvement": None}, 0.0),
        (Stage.HOLDING, {"alpha": 0.35}, 0.35),
        (Stage.FOSSILIZED, {"contribution": 2.5}, 0.25),
        (Stage.FOSSILIZED, {"contribution": 25.0}, 1.0),
        (Stage.FOSSILIZED, {"contribution": math.nan}, 0.0),
    ],
)
def test_scores(target: Stage, changes: dict[str, Any], score: float) -> None:
    assert verdict(target, **changes).score == score


@pytest.mark.parametrize(
    ("target", "threshold", "value"),
    [
        (Stage.BLENDING, "min_improvement", 0.51),
        (Stage.BLENDING, "min_training_epochs", 11),
        (Stage.BLENDING, "min_gradient_ratio", 0.11),
        (Stage.HOLDING, "min_blending_epochs", 11),
        (Stage.FOSSILIZED, "min_contribution", 1.01),
        (Stage.FOSSILIZED, "min_gradient_health", 0.71),
    ],
)
def test_every_threshold_is_configured(target: Stage, threshold: str, value: float) -> None:
    config = replace(STRICT, **{threshold: value})  # type: ignore[arg-type]
    assert len(verdict(target, config).failed) == 1


def test_scales_of_the_scores_are_configured() -> None:
    assert verdict(Stage.BLENDING, GateConfig(full_improvement=1.0)).score == 0.5
    assert verdict(Stage.FOSSILIZED, GateConfig(full_contribution=2.0)).score == 0.5


@pytest.mark.parametrize("target", [stage for stage in Stage if stage not in AT])
def test_other_stages_have_no_gate(target: Stage) -> None:
    with pytest.raises(UnguardedStage, match=f"no gate guards stage {target.name}"):
        evaluate_gate(target, AT[Stage.TRAINING], STRICT)


def test_a_verdict_says_what_was_found() -> None:
    failing = verdict(Stage.BLENDING, improvement=None, epochs_in_stage=3)
    assert str(failing) == ("G2 failed: improvement never measured; epochs_in_stage 3, needs at least 10")
    moving = verdict(Stage.HOLDING, alpha=0.2, alpha_mode=AlphaMode.UP)
    assert str(moving) == "G3 failed: alpha_holds UP at 0.2, needs HOLD at its target 0.7 > 0"
    assert str(verdict(Stage.FOSSILIZED, exploding=True)) == "G5 failed: not_exploding exploding is true"
    assert str(verdict(Stage.BLENDING)) == "G2 passed, score 0.10"
    assert str(verdict(Stage.GERMINATED, blueprint_known=None)) == "G0 failed: blueprint_known never measured"


numbers = st.none() | st.floats()
metrics = st.builds(
    SlotMetrics,
    stage=st.sampled_from(Stage),
    epochs_in_stage=st.integers(0, 30),
    alpha=st.floats(0.0, 1.0),
    alpha_target=st.floats(0.0, 1.0),
    alpha_mode=st.sampled_from(AlphaMode),
    improvement=numbers,
    gradient_ratio=numbers,
    gradient_health=numbers,
    exploding=st.booleans(),
    contribution=numbers,
)


@given(metrics, st.sampled_from(list(AT)), st.sampled_from([STRICT, PERMISSIVE]))
def test_a_verdict_is_its_checks_and_a_score_in_range(
    given_metrics: SlotMetrics, target: Stage, config: GateConfig
) -> None:
    found = evaluate_gate(target, given_metrics, config)
    assert found.passed == all(check.passed for check in found.checks)
    assert 0.0 <= found.score <= 1.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_improvement", math.nan),
        ("min_training_epochs", -1),
        ("min_training_epochs", 1.5),
        ("max_training_epochs", 9),
        ("max_training_epochs", 20.0),
        ("min_gradient_ratio", math.inf),
        ("min_gradient_health", "0.7"),
        ("min_blending_epochs", True),
        ("min_contribution", math.nan),
        ("full_improvement", 0.0),
        ("full_contribution", -1.0),
    ],
)
def test_a_threshold_that_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        GateConfig(**{key: value})  # type: ignore[arg-type]
    assert caught.value.key == f"gates.{key}"
