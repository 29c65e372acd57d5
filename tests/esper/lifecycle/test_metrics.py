"""Averages, and the two numbers made from gradients."""

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.lifecycle import GradientStats, GradientTrend, MetricSums, SlotMeasurement, mean_measurement


def test_sums_weigh_shards_by_their_samples() -> None:
    both = MetricSums(loss_sum=30.0, correct=10, samples=10) + MetricSums(loss_sum=0.0, correct=0, samples=30)
    assert (both.loss, both.accuracy) == (0.75, 25.0)


def test_nothing_seen_is_not_0() -> None:
    assert math.isnan(MetricSums().loss)
    assert math.isnan(MetricSums().accuracy)


def test_a_mean_is_over_the_ranks_that_measured() -> None:
    rows = [SlotMeasurement(1.0, None, -1.0), SlotMeasurement(None, None, 2.0, exploding=True)]
    assert mean_measurement(rows) == SlotMeasurement(1.0, None, 0.5, exploding=True)


def test_a_mean_does_not_depend_on_the_order_of_ranks() -> None:
    rows = [SlotMeasurement(value) for value in (1e16, 1.0, -1e16, 0.1)]
    assert len({mean_measurement(order) for order in permutations(rows)}) == 1


@pytest.mark.parametrize(
    ("stats", "ratio"),
    [
        (GradientStats(2.0, (3.0, 4.0), 400, 100), 5.0),
        (GradientStats(2.0, (3.0, 4.0), 100, 400), 1.25),
        (GradientStats(0.001, (3.0, 4.0), 100, 100), 10.0),
        (GradientStats(0.0, (1.0,), 100, 100), 10.0),
        (GradientStats(0.0, (0.0,), 100, 100), 0.0),
        (GradientStats(1.0, (0.0,), 100, 100), 0.0),
        (GradientStats(1.0, (math.inf,), 100, 100), 0.0),
        (GradientStats(math.nan, (1.0,), 100, 100), 0.0),
        (GradientStats(1.0, (), 100, 0), 0.0),
    ],
)
def test_ratio(stats: GradientStats, ratio: float) -> None:
    assert stats.ratio() == ratio


@pytest.mark.parametrize(
    ("norms", "health", "exploding"),
    [
        ((1.0, 10.0), 1.0, False),
        ((1.0, 1e-8), 0.75, False),
        ((1.0, 1e-7), 1.0, False),
        ((1.0, 10.1), 0.6, True),
        ((1e-8, 10.1), 0.35, True),
        ((11.0, 12.0), 0.2, True),
        ((1.0, math.inf), 0.0, True),
        ((1.0, math.nan), 0.0, True),
        ((), 0.0, False),
    ],
)
def test_health(norms: tuple[float, ...], health: float, exploding: bool) -> None:
    stats = GradientStats(1.0, norms, 10, 10)
    assert stats.health(clip=1.0) == pytest.approx(health)
    assert stats.exploding(clip=1.0) is exploding


@given(st.floats(), st.lists(st.floats()), st.integers(1, 9), st.integers(1, 9))
def test_both_stay_in_range_whatever_the_gradients(host: float, seed: list[float], p: int, q: int) -> None:
    stats = GradientStats(abs(host), tuple(map(abs, seed)), p, q)
    assert 0.0 <= stats.ratio() <= 10.0
    assert 0.0 <= stats.health(clip=1.0) <= 1.0


def test_the_trend_starts_at_the_first_reading_and_follows_slowly() -> None:
    trend = GradientTrend().updated(GradientStats(1.0, (2.0,), 1, 1), clip=1.0)
    assert trend == GradientTrend(2.0, 1.0, False)
    trend = trend.updated(GradientStats(1.0, (0.0,), 1, 1), clip=1.0)
    assert trend.ratio == pytest.approx(1.8)
    assert (trend.health, trend.exploding) == (0.5, False)
