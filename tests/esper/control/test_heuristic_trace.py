"""What the heuristic does by its defaults in one written-down run, where a change of any rule shows.

The lifecycle is the real one: states, clocks, gates, ramps and cooldowns. What is measured is a script.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import pytest

from esper.control import (
    Action,
    EpochSignals,
    Germinate,
    HeuristicConfig,
    HeuristicController,
    Prune,
    gate_for,
)
from esper.lifecycle import GateConfig, SlotConfig, SlotMeasurement, SlotRecord, SlotState, Stage
from esper.lifecycle.clock import SlotClock


@dataclass(frozen=True)
class Stretch:
    """Epochs that are measured alike: what each gains in points, and by what its loss is multiplied."""

    epochs: int
    gain: float = 0.0
    loss: float = 0.99
    ratio: float | None = 1.0
    health: float | None = 1.0
    contribution: float | None = None


# One of the two slots has a seed at a time; (n) is the epoch that a stretch ends with.
SCRIPT = (
    Stretch(3, gain=9.0, loss=0.7),  # (3) the host learns,
    Stretch(1, gain=0.25, loss=0.94),  # (4) no longer gains much, and its loss still falls,
    Stretch(1, gain=0.25),
    Stretch(1, gain=0.25, loss=0.94),  # (6)
    Stretch(1, gain=0.25, loss=1.04),  # (7) or jumps:
    Stretch(1, gain=0.25, loss=0.96),  # (8) three stable epochs
    Stretch(1, gain=0.25, loss=1.025),
    Stretch(1, gain=0.25),  # (10) make a first plateau
    Stretch(1),
    Stretch(4, gain=-0.5625),  # (15) the seed in training fails, which counts
    Stretch(1),  # (16) from its fifth epoch on
    Stretch(1, gain=0.5),  # (17) no plateau yet
    Stretch(5),  # (22)
    Stretch(1, gain=-1.75),  # (23) is not failing yet
    Stretch(6),
    Stretch(2, gain=0.875),  # (31) G2: too early, then without a gain
    Stretch(1, gain=0.5),
    Stretch(10),  # (42) mixed in
    Stretch(3, contribution=0.5),  # (45) of little use,
    Stretch(1, contribution=0.25),  # (46) of none
    Stretch(16, gain=0.125),  # (62)
    Stretch(20, gain=0.125, contribution=0.75),  # (82) of some use, for too long
    Stretch(26, ratio=0.09),  # (108) G2 stays shut
    Stretch(2),  # (110) both blueprints are passed over once
    Stretch(21, gain=0.125),  # (131)
    Stretch(2, health=0.5, contribution=1.0),  # (133) of use, and not well;
    Stretch(1, contribution=1.0),  # (134) well
    Stretch(2),
    Stretch(4, gain=-0.5625),  # (140) another fails, and its slot has to cool down
    Stretch(10),
    Stretch(4, gain=-0.5625),  # (154) and another
    Stretch(40),  # (194) G2 by age
    Stretch(1, contribution=1.0),
    Stretch(20),  # (215) no slot is left
)

# What is done in which epochs; in all others it waits.
GOLDEN = [
    ("10", "germinate norm in r0c0"),  # a stable host on a plateau
    ("11", "advance from GERMINATED r0c0"),
    ("12 to 15", "ask G2 (improvement, epochs_in_stage) r0c0"),
    ("16", "prune from TRAINING r0c0"),  # failing
    ("20", "germinate conv_light in r0c1"),  # the other blueprint's turn; r0c0 cools down
    ("21", "advance from GERMINATED r0c1"),
    ("22 to 30", "ask G2 (improvement, epochs_in_stage) r0c1"),
    ("31", "ask G2 (improvement) r0c1"),
    ("32", "advance from TRAINING r0c1"),  # G2
    ("37 to 41", "ask G3 (epochs_in_stage) r0c1"),
    ("42", "advance from BLENDING r0c1"),  # G3
    ("46", "prune from HOLDING r0c1"),  # useless; alpha goes down until 50
    ("51", "germinate norm in r0c0"),
    ("52", "advance from GERMINATED r0c0"),
    ("53 to 55", "ask G2 (improvement, epochs_in_stage) r0c0"),
    ("56 to 61", "ask G2 (epochs_in_stage) r0c0"),
    ("62", "advance from TRAINING r0c0"),
    ("67 to 71", "ask G3 (epochs_in_stage) r0c0"),
    ("72", "advance from BLENDING r0c0"),
    ("82", "prune from HOLDING r0c0"),  # overdue; norm's second: 4
    ("87", "germinate conv_light in r0c1"),  # conv_light has 2
    ("88", "advance from GERMINATED r0c1"),
    ("89 to 97", "ask G2 (improvement, epochs_in_stage, gradient_ratio) r0c1"),
    ("98 to 107", "ask G2 (improvement, gradient_ratio) r0c1"),
    ("108", "prune from TRAINING r0c1"),  # overdue; conv_light's second: 4
    ("110", "germinate norm in r0c0"),  # not at 109, when both were passed over: 2 and 2
    ("111", "advance from GERMINATED r0c0"),
    ("112 to 114", "ask G2 (improvement, epochs_in_stage) r0c0"),
    ("115 to 120", "ask G2 (epochs_in_stage) r0c0"),
    ("121", "advance from TRAINING r0c0"),
    ("126 to 130", "ask G3 (epochs_in_stage) r0c0"),
    ("131", "advance from BLENDING r0c0"),
    ("134", "advance from HOLDING r0c0"),  # G5: for good, and norm is forgiven
    ("135", "germinate conv_light in r0c1"),
    ("136", "advance from GERMINATED r0c1"),
    ("137 to 140", "ask G2 (improvement, epochs_in_stage) r0c1"),
    ("141", "prune from TRAINING r0c1"),  # conv_light has 4
    ("149", "germinate norm in r0c1"),  # norm's turn, when r0c1 has cooled down
    ("150", "advance from GERMINATED r0c1"),
    ("151 to 154", "ask G2 (improvement, epochs_in_stage) r0c1"),
    ("155", "prune from TRAINING r0c1"),  # norm has 2
    ("163", "germinate norm in r0c1"),  # conv_light is passed over: 2
    ("164", "advance from GERMINATED r0c1"),
    ("165 to 173", "ask G2 (improvement, epochs_in_stage) r0c1"),
    ("174 to 183", "ask G2 (improvement) r0c1"),
    ("184", "advance from TRAINING r0c1"),  # a healthy seed of 20 epochs
    ("189 to 193", "ask G3 (epochs_in_stage) r0c1"),
    ("194", "advance from BLENDING r0c1"),
    ("195", "advance from HOLDING r0c1"),  # both slots are taken
]


class Life:
    """Slots and a controller in an epoch's order: measure, decide, apply, tick."""

    def __init__(self, heuristic: HeuristicConfig, gates: GateConfig, slot: SlotConfig) -> None:
        self.controller, self.gates, self.config = HeuristicController(heuristic, gates), gates, slot
        self.clocks = {name: SlotClock(SlotState(name), slot) for name in ("r0c0", "r0c1")}
        self.losses, self.accuracies = [2.0], [10.0]

    def epoch(self, stretch: Stretch) -> list[str]:
        """One epoch; what was done in it."""
        self.losses.append(self.losses[-1] * stretch.loss)
        self.accuracies.append(self.accuracies[-1] + stretch.gain)
        records = [clock.state.record() for clock in self.clocks.values()]
        measured = [_measured(record, stretch) for record in records]
        epoch = len(self.losses) - 1
        signals = EpochSignals.of(epoch, self.losses[1:], self.accuracies[1:], records, measured)
        done = [self._apply(action, signals) for action in self.controller.decide(signals).actions]
        for slot_id, clock in self.clocks.items():
            if not clock.tick():
                self.clocks[slot_id] = SlotClock(clock.state.tick(self.config), self.config)
        return done

    def _apply(self, action: Action, signals: EpochSignals) -> str:
        view = next(view for view in signals.slots if view.record.slot_id == action.slot_id)
        state, stage = self.clocks[action.slot_id].state, view.record.stage.name
        if isinstance(action, Germinate):
            state, done = (
                state.germinate(action.blueprint, self.config.blend),
                f"germinate {action.blueprint} in",
            )
        elif isinstance(action, Prune):
            state, done = state.prune(self.config.tempo), f"prune from {stage}"
        elif (verdict := gate_for(view, self.gates)).passed:
            state, done = state.advance(self.config), f"advance from {stage}"
        else:
            shut = ", ".join(check.name for check in verdict.failed)
            done = f"ask {verdict.gate} ({shut})"
        self.clocks[action.slot_id] = SlotClock(state, self.config)
        return f"{done} {action.slot_id}"


def _measured(record: SlotRecord, stretch: Stretch) -> SlotMeasurement:
    trained = record.stage in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
    return SlotMeasurement(
        gradient_ratio=stretch.ratio if trained else None,
        gradient_health=stretch.health if trained else None,
        contribution=stretch.contribution if record.stage in (Stage.BLENDING, Stage.HOLDING) else None,
    )


def trace(
    heuristic: HeuristicConfig | None = None, gates: GateConfig | None = None, slot: SlotConfig | None = None
) -> list[tuple[str, str]]:
    """Epochs and what was done in them; the same thing in epochs on end is one line."""
    life = Life(heuristic or HeuristicConfig(), gates or GateConfig(), slot or SlotConfig())
    stretches = [stretch for stretch in SCRIPT for _ in range(stretch.epochs)]
    done = [(epoch, "; ".join(life.epoch(stretch))) for epoch, stretch in enumerate(stretches, 1)]
    lines = []
    for what, same in groupby(done, key=lambda each: each[1]):
        first, *_, last = [epoch for epoch, _ in same] * 2
        if what:
            lines.append((f"{first}" if first == last else f"{first} to {last}", what))
    return lines


def test_a_run_by_the_defaults_goes_as_written_down() -> None:
    assert trace() == GOLDEN


HEURISTIC: dict[str, tuple[Any, ...]] = {
    "blueprints": (("conv_light", "norm"), ("norm", "conv_light", "attention")),
    "plateau_epochs": (2, 4),
    "plateau_points": (0.25, 0.51),
    "stable_epochs": (2, 4),
    "stable_fall": (0.035, 0.07),
    "stable_rise": (0.02, 0.05),
    "failing_epochs": (4, 6),
    "failing_points": (1.6, 2.25),
    "min_contribution": (0.25, 0.51),
    "max_holding_epochs": (9, 11),
    "max_growing": (2,),
    "prune_penalty": (1.4, 3.0),
    "penalty_decay": (0.2, 0.8),
    "penalty_limit": (2.0, 4.1),
}
GATES: dict[str, tuple[Any, ...]] = {
    "permissive": (True,),
    "min_improvement": (0.12, 0.51),
    "min_training_epochs": (9, 11),
    "max_training_epochs": (19, 21),
    "min_gradient_ratio": (0.09, 1.1),
    "min_gradient_health": (0.5, 1.1),
    "min_blending_epochs": (9, 11),
    "min_contribution": (0.75, 1.1),
}
SLOT: dict[str, tuple[Any, ...]] = {
    "tempo": (4, 6),
    "pruned_epochs": (2,),
    "embargoed_epochs": (4, 6),
    "resetting_epochs": (2,),
}
# What a gate's score is made of, which nobody acts on; and how alpha moves between two values.
SILENT = {"full_improvement", "full_contribution", "blend", "curve", "steepness", "alpha_target"}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        pytest.param(kind, name, value, id=f"{name}={value}")
        for kind, changes in ((HeuristicConfig, HEURISTIC), (GateConfig, GATES), (SlotConfig, SLOT))
        for name, values in changes.items()
        for value in values
    ],
)
def test_every_threshold_shows_in_it(kind: type, name: str, value: object) -> None:
    configs: dict[type, Any] = {each: each() for each in (HeuristicConfig, GateConfig, SlotConfig)}
    configs[kind] = replace(configs[kind], **{name: value})
    assert trace(*configs.values()) != GOLDEN


def test_no_threshold_is_left_out() -> None:
    known = {each.name for kind in (HeuristicConfig, GateConfig, SlotConfig) for each in fields(kind)}
    assert known == {*HEURISTIC, *GATES, *SLOT, *SILENT}
