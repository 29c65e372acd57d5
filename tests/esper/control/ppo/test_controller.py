"""The policy as a controller: decided by agreed bits, recorded as it was decided, and saved."""

from __future__ import annotations

import json
import math

import pytest
import torch

from esper.control import Decision, EpochSignals
from esper.control.ppo import Op, PpoConfig
from esper.control.ppo.controller import Learned, PpoController
from esper.control.ppo.observe import observation_size, observe
from esper.control.ppo.statistics import RunningStatistics
from esper.errors import BadState
from esper.lifecycle import GateConfig, SlotMeasurement, Stage
from tests.esper.control.ppo.views import epoch, slot
from tests.esper.control.ppo.worlds import SPACE

EPOCHS = 6
CONFIG = PpoConfig(hidden=8)


def controller(seed: int = 0, *, greedy: bool = False) -> PpoController:
    learned = Learned.fresh(SPACE, CONFIG, seed)
    return PpoController(learned, CONFIG, GateConfig(), EPOCHS, greedy=greedy)


def run(number: int, bits: int = 0) -> EpochSignals:
    accuracies = tuple(10.0 * one for one in range(1, number + 1))
    return epoch(slot(Stage.HOLDING), accuracies=accuracies, losses=(1.0,) * number, bits=bits + number)


def test_the_same_bits_decide_the_same_and_others_otherwise() -> None:
    def decisions(seed: int, bits: int) -> list[Decision]:
        one = controller(seed)
        return [one.decide(run(number, bits)) for number in range(1, EPOCHS)]

    assert decisions(0, 0) == decisions(0, 0)
    assert len({tuple(decisions(0, 1000 * bits)) for bits in range(5)}) > 1
    greedy = [controller(greedy=True).decide(run(1, bits)) for bits in range(20)]
    assert len(set(greedy)) == 1


def test_what_was_decided_is_recorded_with_what_came_of_it() -> None:
    one = controller()
    decided = [one.decide(run(number)) for number in range(1, EPOCHS + 1)]
    episode = one.finished()
    assert decided == [*map(SPACE.decision, episode.choices), Decision()]
    assert len(episode.choices) == len(episode.rewards) == len(episode.values) == EPOCHS - 1
    assert all(reward > 0.0 for reward in episode.rewards)  # ten points each
    assert episode.bootstrap != 0.0  # cut off, not over
    assert len(one.observed) == EPOCHS - 1
    for decision, chances, value in zip(decided, episode.log_probs, episode.values, strict=False):
        said = f"of probability {math.exp(sum(chances)):.2f}, where the value was {value:+.2f}"
        assert decision.reasons == (said,) * len(decision.actions)
    assert any(decision.reasons for decision in decided)


@pytest.mark.parametrize("decided", [0, 2])
def test_a_run_that_breaks_off_has_terminated(decided: int) -> None:
    one = controller()
    for number in range(1, decided + 1):
        one.decide(run(number))
    episode = one.finished()
    assert len(episode.rewards) == len(episode.choices) == max(1, decided)
    assert episode.rewards[-1] == -CONFIG.reward.gain
    assert episode.bootstrap == 0.0


def test_a_saved_controller_goes_on_the_same() -> None:
    one, other = controller(), controller()
    for number in (1, 2, 3):
        one.decide(run(number))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for number in (4, 5):
        assert one.decide(run(number)) == other.decide(run(number))
        assert one.episode.values[-1] == other.episode.values[-1]
    for wrong in (
        {},
        {**one.state_dict(), "rewards": {"accuracy": 1.0}},
        controller(seed=1).state_dict(),
        {**one.state_dict(), "state": [1.0]},
    ):
        with pytest.raises(BadState):
            other.load_state_dict(wrong)


def test_observations_tell_apart_what_differs() -> None:
    def of(signals: EpochSignals) -> tuple[float, ...]:
        return observe(signals, SPACE, GateConfig(), epochs=EPOCHS)

    seen = [
        of(signals)
        for signals in (
            run(1), run(2), epoch(slot(Stage.TRAINING)), epoch(slot(Stage.DORMANT), slot(Stage.TRAINING, 1)),
            epoch(slot(Stage.TRAINING, blueprint="conv_light")), epoch(slot(Stage.TRAINING, alpha=0.25)),
            epoch(slot(Stage.TRAINING), measured=SlotMeasurement()),
            epoch(slot(Stage.TRAINING), measured=SlotMeasurement(contribution=0.0)),
        )
    ]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert {len(one) for one in seen} == {observation_size(SPACE)}


def test_observations_are_finite_whatever_was_measured() -> None:
    wild = SlotMeasurement(gradient_ratio=math.inf, gradient_health=math.nan, contribution=-1e30)
    found = observe(
        epoch(slot(Stage.HOLDING), measured=wild, losses=(math.inf, 0.0), accuracies=(math.nan, 1.0)),
        SPACE,
        GateConfig(),
        epochs=EPOCHS,
    )
    assert all(math.isfinite(number) and abs(number) <= 10.0 for number in found)


def test_statistics_are_those_of_all_that_was_taken_in() -> None:
    rows = (torch.randn(50, 3, dtype=torch.float64) * 4.0 + 7.0).tolist()
    statistics = RunningStatistics(3)
    assert statistics.normalise(rows[0]) == tuple(rows[0])
    for start in range(0, 50, 10):
        statistics.take(rows[start : start + 10])
    whole = torch.tensor(rows, dtype=torch.float64)
    expected = (whole[0] - whole.mean(0)) / whole.std(0, correction=0)
    assert statistics.normalise(rows[0]) == pytest.approx(tuple(expected.clamp(-5.0, 5.0).tolist()))
    statistics.take([])
    assert float(statistics.count) == 50.0


def test_what_never_varied_is_only_shifted() -> None:
    statistics = RunningStatistics(1)
    statistics.take([(3.0,)] * 4)
    assert statistics.normalise((4.0,)) == (1.0,)


def test_every_operation_is_chosen_sooner_or_later() -> None:
    found = set()
    for bits in range(300):
        one = controller()
        one.decide(epoch(slot(Stage.HOLDING), slot(Stage.TRAINING, 1), bits=bits, number=1))
        found.add(one.episode.choices[0].op)
    assert found == set(Op)
