"""Alpha: curves and ramps."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import AlphaNotHolding, BadState, ConfigError
from esper.lifecycle import AlphaController, AlphaCurve, AlphaMode, curve_value

ALPHAS = st.floats(0.0, 1.0)
STEEPNESS = st.floats(1e-3, 1e6)
CURVES = st.sampled_from(AlphaCurve)
RAMPS = st.builds(
    lambda start, target, ticks, curve, steepness: AlphaController(
        start=start, target=start, curve=curve, steepness=steepness
    ).retarget(target, ticks),
    start=ALPHAS,
    target=ALPHAS,
    ticks=st.integers(0, 60),
    curve=CURVES,
    steepness=STEEPNESS,
)


def run(controller: AlphaController) -> list[float]:
    """All alphas of a ramp, its present one first."""
    alphas = [controller.alpha]
    while controller.mode is not AlphaMode.HOLD:
        controller = controller.tick()
        alphas.append(controller.alpha)
    return alphas


@given(RAMPS)
def test_a_ramp_is_monotone_never_overshoots_and_lands_on_its_target(ramp: AlphaController) -> None:
    alphas = run(ramp)
    assert alphas[-1] == ramp.target
    assert alphas == sorted(alphas, reverse=ramp.mode is AlphaMode.DOWN)
    low, high = sorted((alphas[0], ramp.target))
    assert all(low <= alpha <= high for alpha in alphas)


@given(RAMPS)
def test_a_ramp_takes_its_ticks(ramp: AlphaController) -> None:
    moving = ramp.start != ramp.target
    assert len(run(ramp)) - 1 == ramp.ticks_left == ramp.ticks
    assert (ramp.ticks_left > 0) == (ramp.mode is not AlphaMode.HOLD)
    if ramp.mode is not AlphaMode.HOLD:
        assert moving
        assert ramp.mode is (AlphaMode.UP if ramp.target > ramp.start else AlphaMode.DOWN)
        assert ramp.alpha == ramp.start


@given(RAMPS, st.integers(0, 60), ALPHAS, st.integers(0, 9))
def test_retarget_only_when_it_holds(ramp: AlphaController, ticks: int, target: float, length: int) -> None:
    for _ in range(ticks):
        ramp = ramp.tick()
    if ramp.mode is AlphaMode.HOLD:
        assert ramp.retarget(target, length).alpha == (target if length == 0 else ramp.alpha)
        assert ramp.retarget(target, length).target == target
    else:
        with pytest.raises(AlphaNotHolding) as caught:
            ramp.retarget(target, length)
        assert (caught.value.alpha, caught.value.ticks_left) == (ramp.alpha, ramp.ticks_left)


@given(RAMPS, st.integers(0, 60), st.integers(0, 9))
def test_retreat_goes_down_to_0_from_anywhere(ramp: AlphaController, ticks: int, length: int) -> None:
    for _ in range(ticks):
        ramp = ramp.tick()
    retreat = ramp.retreat(length)
    alphas = run(retreat)
    assert alphas[-1] == 0.0
    assert alphas == sorted(alphas, reverse=True)
    assert len(alphas) - 1 == (length if ramp.alpha > 0.0 else 0)
    assert alphas[0] == (ramp.alpha if length else 0.0)


@given(CURVES, ALPHAS, ALPHAS, STEEPNESS)
def test_a_curve_goes_from_0_to_1_without_falling(
    curve: AlphaCurve, one: float, other: float, steepness: float
) -> None:
    assert curve_value(curve, 0.0, steepness) == 0.0
    assert curve_value(curve, 1.0, steepness) == pytest.approx(1.0, abs=1e-15)
    early, late = sorted((one, other))
    # Neighbouring floats may differ by the last bit of cos and tanh.
    assert curve_value(curve, early, steepness) <= curve_value(curve, late, steepness) + 1e-15


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (AlphaCurve.LINEAR, [0.25, 0.5, 0.75]),
        (AlphaCurve.COSINE, [(1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2]),
        (AlphaCurve.SIGMOID, [0.0451766597, 0.5, 0.9548233403]),
    ],
)
def test_the_curves_by_number(curve: AlphaCurve, expected: list[float]) -> None:
    assert [curve_value(curve, t) for t in (0.25, 0.5, 0.75)] == pytest.approx(expected)


@pytest.mark.parametrize("t", [0.1, 0.25, 0.5, 0.9])
def test_the_sigmoid_is_the_normalised_logistic_function(t: float) -> None:
    def s(x: float) -> float:
        return 1.0 / (1.0 + math.exp(-x))

    k = 12.0
    formula = (s(k * (t - 0.5)) - s(-k / 2)) / (s(k / 2) - s(-k / 2))
    assert curve_value(AlphaCurve.SIGMOID, t, k) == pytest.approx(formula, abs=1e-12)


@pytest.mark.parametrize("steepness", [1e-300, 1e308])
def test_no_steepness_overflows(steepness: float) -> None:
    assert curve_value(AlphaCurve.SIGMOID, 0.5, steepness) == 0.5
    assert curve_value(AlphaCurve.SIGMOID, 1.0, steepness) == pytest.approx(1.0)


def test_no_ticks_is_at_once() -> None:
    there = AlphaController().retarget(0.7, 0)
    assert (there.alpha, there.mode, there.ticks_left) == (0.7, AlphaMode.HOLD, 0)
    assert there.tick() == there


@pytest.mark.parametrize(
    ("target", "ticks", "key"),
    [
        (1.1, 3, "alpha.target"),
        (math.nan, 3, "alpha.target"),
        (0.5, -1, "alpha.ticks"),
        (0.5, True, "alpha.ticks"),
    ],
)
def test_bad_ramps_are_refused(target: float, ticks: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AlphaController().retarget(target, ticks)
    assert caught.value.key == key


def test_bad_ticks_are_refused_where_there_is_no_way_to_go() -> None:
    with pytest.raises(ConfigError):
        AlphaController().retreat(-1)


@given(RAMPS, st.integers(0, 60))
def test_it_survives_saving_bit_for_bit(ramp: AlphaController, ticks: int) -> None:
    for _ in range(ticks):
        ramp = ramp.tick()
    assert AlphaController.from_dict(ramp.to_dict()) == ramp
    assert pickle.loads(pickle.dumps(ramp)) == ramp


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"target": 1.5}, "alpha.target"),
        ({"done": 4}, "alpha.done"),
        ({"ticks": 2.5}, "alpha.ticks"),
        ({"curve": "zigzag"}, "alpha.curve"),
        ({"steepness": 0.0}, "alpha.steepness"),
        ({"speed": 1}, "alpha"),
    ],
)
def test_foreign_state_is_refused_by_name(change: dict[str, object], where: str) -> None:
    good = AlphaController().retarget(1.0, 3).to_dict()
    with pytest.raises(BadState) as caught:
        AlphaController.from_dict({**good, **change})
    assert caught.value.where == where
