"""What an epoch is worth, part by part."""

from __future__ import annotations

import math

import pytest

from esper.control.ppo import RewardConfig
from esper.control.ppo.reward import Rewards
from esper.lifecycle import SlotMeasurement, Stage
from tests.esper.control.ppo.views import HEALTHY, epoch, slot

NOTHING = {"gain": 0.0, "contribution": 0.0, "shaping": 0.0, "rent": 0.0}
NEVER = SlotMeasurement()


def rewards(gamma: float = 0.9, **parts: float) -> Rewards:
    costs = {("r0c0", "norm"): 0.25, ("r0c1", "norm"): 0.5}
    return Rewards(RewardConfig(**{**NOTHING, **parts}), gamma, costs)


def test_the_accuracy_that_was_gained_counts_and_is_bounded() -> None:
    found = rewards(gain=2.0)
    assert found.of(epoch(accuracies=(50.0,))) == 0.0
    assert found.of(epoch(accuracies=(50.0, 52.5))) == pytest.approx(2.0 * math.tanh(0.5))
    assert found.of(epoch(accuracies=(50.0, 52.5, 0.0))) == pytest.approx(-2.0, abs=1e-6)


def test_contributions_count_and_a_fossils_as_it_was_last() -> None:
    found = rewards(contribution=3.0)
    share = math.tanh(HEALTHY.contribution / 10.0)  # type: ignore[operator]
    found.of(epoch())
    holding = epoch(slot(Stage.HOLDING), measured=HEALTHY)
    assert found.of(holding) == pytest.approx(3.0 * share)  # each of the three slots has it
    assert found.of(epoch(slot(Stage.FOSSILIZED), measured=NEVER)) == pytest.approx(share)
    assert found.of(epoch(slot(Stage.TRAINING), measured=NEVER)) == 0.0
    assert found.of(epoch(slot(Stage.FOSSILIZED, birth=2), measured=NEVER)) == 0.0


def test_shaping_adds_up_to_the_potential_wherever_a_seed_went() -> None:
    gamma, found = 0.9, rewards(0.9, shaping=1.0)
    stages = (Stage.DORMANT, Stage.GERMINATED, Stage.TRAINING, Stage.PRUNED, Stage.DORMANT)
    told = [found.of(epoch(slot(stage))) for stage in stages]
    # Sum of gamma^t (gamma P(t+1) - P(t)), which is 0 from nothing to nothing.
    assert math.fsum(gamma**at * one for at, one in enumerate(told[1:])) == pytest.approx(0.0)
    assert told[1] > 0.0


def test_rent_is_due_for_what_is_there() -> None:
    found = rewards(rent=2.0)
    found.of(epoch())
    assert found.of(epoch()) == 0.0
    assert found.of(epoch(slot(Stage.TRAINING), slot(Stage.FOSSILIZED, 1))) == pytest.approx(-2.0 * 0.75)


def test_a_saved_state_goes_on_the_same() -> None:
    parts = {"gain": 1.0, "contribution": 1.0, "shaping": 1.0}
    one, other = rewards(**parts), rewards(**parts)
    one.of(epoch(slot(Stage.HOLDING)))
    other.load(one.state())
    following = epoch(slot(Stage.FOSSILIZED), measured=NEVER, accuracies=(3.0, 4.0))
    assert one.of(following) == other.of(following)
