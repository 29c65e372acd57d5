"""When the emergency brake is pulled, and when not."""

import math

import pytest

from esper.control import Alarm, Governor, GovernorConfig
from esper.errors import BadState, ConfigError

GUESS = math.log(10)


def after(*losses: float, config: GovernorConfig | None = None) -> Governor:
    governor = Governor(config or GovernorConfig())
    for loss in losses:
        governor.learn(loss, panicked=False)
    return governor


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("before", [(), (1.0, 1.0)])
def test_what_is_no_number_is_panic_at_once(loss: float, before: tuple[float, ...]) -> None:
    assert after(*before).judge(loss) is Alarm.NOT_FINITE


@pytest.mark.parametrize(
    ("before", "loss", "alarm"),
    [
        ((0.59 * GUESS,), GUESS, Alarm.LOBOTOMY),
        ((0.59 * GUESS,), 0.936 * GUESS, Alarm.LOBOTOMY),
        ((0.59 * GUESS,), 1.064 * GUESS, Alarm.LOBOTOMY),
        ((0.59 * GUESS,), 0.93 * GUESS, Alarm.CALM),
        ((0.59 * GUESS,), 1.07 * GUESS, Alarm.CALM),
        ((0.61 * GUESS,), GUESS, Alarm.CALM),
        ((), GUESS, Alarm.CALM),
    ],
)
def test_guessing_after_knowing_better_is_panic(before: tuple[float, ...], loss: float, alarm: Alarm) -> None:
    assert after(*before).judge(loss) is alarm


def test_a_third_spike_in_a_row_is_panic() -> None:
    governor = after(1.0, 1.0, 1.0)
    found = []
    for loss in (13.0, 14.0, 13.0):
        found.append(governor.judge(loss))
        governor.learn(loss, panicked=governor.judge(loss).panic)
    assert found == [Alarm.SPIKE, Alarm.SPIKE, Alarm.EXPLOSION]


def test_a_calm_epoch_between_breaks_the_row() -> None:
    governor = after(1.0, 1.0, 13.0, 13.0, 1.0, 13.0, 13.0)
    assert governor.judge(1.0) is Alarm.CALM
    assert governor.judge(13.0) is Alarm.EXPLOSION
    assert after(1.0, 13.0, 1.0).judge(13.0) is Alarm.SPIKE


@pytest.mark.parametrize(
    ("before", "loss", "alarm"),
    [
        ((1.0,), 12.0, Alarm.CALM),  # not above 12
        ((1.0,), 12.1, Alarm.SPIKE),
        ((5.0,), 15.0, Alarm.CALM),  # not above three times the mean
        ((5.0,), 15.1, Alarm.SPIKE),
        ((1.0, 5.0), 14.9, Alarm.CALM),  # not above 3 + 6 * 2
        ((1.0, 5.0), 15.1, Alarm.SPIKE),
    ],
)
def test_a_spike_is_above_all_three(before: tuple[float, ...], loss: float, alarm: Alarm) -> None:
    assert after(*before).judge(loss) is alarm


def test_spikes_do_not_become_usual_and_the_window_ends() -> None:
    config = GovernorConfig(window=2)
    assert after(1.0, 50.0, config=config).state_dict()["losses"] == [1.0]
    assert after(1.0, 2.0, 3.0, config=config).state_dict()["losses"] == [2.0, 3.0]


def test_judging_changes_nothing() -> None:
    governor = after(1.0, 13.0)
    before = governor.state_dict()
    for loss in (math.nan, 13.0, 1.0, GUESS):
        governor.judge(loss)
    assert governor.state_dict() == before


def test_rollbacks_are_counted_in_a_row() -> None:
    governor = after(1.0)
    for count in (1, 2):
        governor.learn(math.nan, panicked=True)
        assert governor.rollbacks == count
    governor.learn(1.0, panicked=False)
    assert governor.rollbacks == 0


def test_switched_off_it_is_always_calm() -> None:
    assert Governor(GovernorConfig(enabled=False)).judge(math.nan) is Alarm.CALM


def test_it_survives_saving() -> None:
    governor, other = after(1.0, 2.0, 13.0), Governor()
    governor.learn(math.nan, panicked=True)
    other.load_state_dict(governor.state_dict())
    assert other == governor


@pytest.mark.parametrize(
    "change", [{"losses": [1]}, {"losses": None}, {"spikes": -1}, {"spikes": True}, {"rollbacks": "1"}]
)
def test_a_foreign_state_is_refused_and_changes_nothing(change: dict[str, object]) -> None:
    governor = after(1.0)
    before = governor.state_dict()
    with pytest.raises(BadState, match=f"governor.{next(iter(change))}"):
        governor.load_state_dict({**before, **change})
    assert governor.state_dict() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("window", 1), ("spikes", 0), ("max_rollbacks", -1), ("guess_loss", math.nan), ("guess_band", 1.5),
     ("known_share", -0.1), ("spike_loss", -1.0), ("spike_sigmas", math.inf), ("spike_factor", "3")],
)  # fmt: skip
def test_a_config_names_what_it_refuses(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        GovernorConfig(**{key: value})  # type: ignore[arg-type]
    assert caught.value.key == f"governor.{key}"
