"""What an epoch was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from esper.control.ppo.config import RewardConfig
from esper.control.signals import EpochSignals, SlotView
from esper.lifecycle.stage import Stage

# How far along a seed is; what is in cooldown, or has no seed, is nowhere.
_ALONG: Mapping[Stage, float] = MappingProxyType(
    {
        Stage.GERMINATED: 0.1,
        Stage.TRAINING: 0.25,
        Stage.BLENDING: 0.5,
        Stage.HOLDING: 0.75,
        Stage.FOSSILIZED: 1.0,
    }
)


class Rewards:
    """The rewards of one run, epoch by epoch.

    gain * tanh(points gained / gain_scale)
    + contribution * mean over slots of tanh(contribution / contribution_scale)
    + shaping * (gamma * potential now - potential before)
    - rent * parameters added / parameters of the host

    The accuracy itself is in it, since a host comes to rely on whatever was mixed in early: a seed may have a
    high contribution in a network that is no better for it. Each epoch's gain is bounded by itself: what a
    host gains in its first epochs, whatever is grown, would drown what seeds bring. That makes slow learning
    worth somewhat more than fast. A fossil's contribution is not measured any more: it counts as it was last.
    The shaping is potential-based (Ng, Harada and Russell 1999), so it changes no
    order of policies.
    """

    def __init__(self, config: RewardConfig, gamma: float, costs: Mapping[tuple[str, str], float]) -> None:
        """`costs`: by slot and blueprint a seed's parameters, as a share of the host's."""
        self._config, self._gamma, self._costs = config, gamma, costs
        self._accuracy: float | None = None
        self._potential = 0.0
        self._worth: dict[tuple[str, int], float] = {}  # by slot and birth, as last measured

    def of(self, signals: EpochSignals) -> float:
        """What came of the last decision; 0 for the first epoch, which no decision came before."""
        config = self._config
        worth = sum(map(self._contribution, signals.slots)) / len(signals.slots)
        before, self._accuracy = self._accuracy, signals.accuracy
        potential, self._potential = self._potential, _potential(signals.slots)
        if before is None:
            return 0.0
        rent = sum(
            self._costs.get((view.record.slot_id, str(view.record.blueprint)), 0.0) for view in signals.slots
        )
        return (
            config.gain * math.tanh((signals.accuracy - before) / config.gain_scale)
            + config.contribution * worth
            + config.shaping * (self._gamma * self._potential - potential)
            - config.rent * rent
        )

    def state(self) -> dict[str, object]:
        """Plain values that `load` takes back."""
        worth = [[slot_id, birth, value] for (slot_id, birth), value in self._worth.items()]
        return {"accuracy": self._accuracy, "potential": self._potential, "worth": worth}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Raises KeyError, TypeError or ValueError for others, and is as it was."""
        accuracy = None if state["accuracy"] is None else float(state["accuracy"])
        potential = float(state["potential"])
        worth = {(str(slot_id), int(birth)): float(value) for slot_id, birth, value in state["worth"]}
        self._accuracy, self._potential, self._worth = accuracy, potential, worth

    def _contribution(self, view: SlotView) -> float:
        record, measured = view.record, view.measurement.contribution
        if measured is not None:
            bounded = math.tanh(measured / self._config.contribution_scale)
            self._worth[record.slot_id, record.birth] = bounded
            return bounded
        fossil = record.stage is Stage.FOSSILIZED
        return self._worth.get((record.slot_id, record.birth), 0.0) if fossil else 0.0


def _potential(views: Sequence[SlotView]) -> float:
    return sum(_ALONG.get(view.record.stage, 0.0) for view in views) / len(views)
