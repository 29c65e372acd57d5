"""Advantages against numbers made by hand, and against the sums that define them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.control.ppo.gae import advantages_of

numbers = st.floats(-10.0, 10.0)
steps = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12)


def test_by_hand() -> None:
    # delta: 1 + 0.5 * 4 - 2 = 1; 0 + 0.5 * 6 - 4 = -1; 2 + 0.5 * 8 - 6 = 0
    found = advantages_of([1.0, 0.0, 2.0], [2.0, 4.0, 6.0], 8.0, gamma=0.5, lam=0.5)
    assert found == [1.0 - 0.25, -1.0, 0.0]


def test_nothing_follows_a_terminated_episode() -> None:
    assert advantages_of([3.0], [1.0], 0.0, gamma=0.9, lam=0.9) == [2.0]


@given(steps, numbers, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_by_definition(episode: list[tuple[float, float]], last: float, gamma: float, lam: float) -> None:
    rewards, values = (list(column) for column in zip(*episode, strict=True))
    following = [*values[1:], last]
    delta = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    expected = [
        sum((gamma * lam) ** (later - at) * delta[later] for later in range(at, len(delta)))
        for at in range(len(delta))
    ]
    assert advantages_of(rewards, values, last, gamma=gamma, lam=lam) == pytest.approx(expected, abs=1e-9)


def test_a_step_without_a_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        advantages_of([1.0], [1.0, 2.0], 0.0, gamma=0.9, lam=0.9)
