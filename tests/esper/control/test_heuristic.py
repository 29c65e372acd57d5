"""The heuristic's rules one by one, and whole lives driven by them without any training."""

import json
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.control import (
    Action,
    Advance,
    Decision,
    EpochSignals,
    Germinate,
    HeuristicConfig,
    HeuristicController,
    Prune,
    gate_for,
)
from esper.errors import BadState, ConfigError
from esper.lifecycle import (
    AlphaMode,
    GateConfig,
    SlotConfig,
    SlotMeasurement,
    SlotRecord,
    SlotState,
    Stage,
)

FLAT = [1.0, 1.0, 1.0, 1.0]
HEALTHY = SlotMeasurement(gradient_ratio=1.0, gradient_health=1.0, contribution=2.0)


def decide(
    controller: HeuristicController,
    *records: SlotRecord,
    losses: list[float] = FLAT,
    accuracies: list[float] = [50.0] * 4,
    measurement: SlotMeasurement = HEALTHY,
) -> tuple[Action, ...]:
    measured = [measurement] * len(records)
    return controller.decide(EpochSignals.of(9, losses, accuracies, records, measured)).actions


def slot(stage: Stage, epochs: int = 1, slot_id: str = "r0c0", **changes: Any) -> SlotRecord:
    blueprint = None if stage in (Stage.DORMANT, Stage.PRUNED) else "norm"
    record = SlotRecord(slot_id, stage, blueprint, 1, epochs, 0.0, 0.0, AlphaMode.HOLD, 0)
    return replace(record, **changes)


EMPTY = slot(Stage.DORMANT)


def test_a_plateau_of_a_stable_host_germinates_in_the_first_empty_slot() -> None:
    records = (
        slot(Stage.FOSSILIZED),
        slot(Stage.DORMANT, slot_id="r0c1"),
        slot(Stage.DORMANT, slot_id="r0c2"),
    )
    assert decide(HeuristicController(), *records) == (Germinate("r0c1", "norm"),)


@pytest.mark.parametrize(
    ("accuracies", "germinates"),
    [
        ([50.0, 50.4, 50.8, 51.2], True),
        ([50.0, 50.5, 50.8, 51.2], False),
        ([50.0, 50.0, 50.0, 50.5], False),
        ([50.0, 40.0, 30.0, 20.0], True),
        ([10.0, 50.0, 50.0, 50.0, 50.0], True),
        ([50.0, 50.0, 50.0], False),
    ],
)
def test_what_a_plateau_is(accuracies: list[float], germinates: bool) -> None:
    assert bool(decide(HeuristicController(), EMPTY, accuracies=accuracies)) is germinates


@pytest.mark.parametrize(
    ("losses", "germinates"),
    [
        ([1.0, 0.96, 0.93, 0.90], True),
        ([1.0, 1.02, 1.04, 1.06], True),
        ([1.0, 0.95, 0.95, 0.95], False),
        ([1.0, 1.0, 1.0, 1.04], False),
        ([1.0, 1.0, 1.0], False),
        ([1.0, 1.0, 1.0, 1.0, 5.0], True),
        ([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], False),
        ([0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_what_stable_is(losses: list[float], germinates: bool) -> None:
    assert bool(decide(HeuristicController(), EMPTY, losses=losses)) is germinates


@pytest.mark.parametrize(
    "stage", [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING], ids=lambda stage: stage.name
)
def test_no_second_seed_while_one_is_under_way(stage: Stage) -> None:
    growing, empty = slot(stage), slot(Stage.DORMANT, slot_id="r0c1")
    assert not any(isinstance(action, Germinate) for action in decide(HeuristicController(), growing, empty))
    both = HeuristicController(HeuristicConfig(max_growing=2))
    assert Germinate("r0c1", "norm") in decide(both, growing, empty)


def test_a_germinated_seed_advances() -> None:
    assert decide(HeuristicController(), slot(Stage.GERMINATED)) == (Advance("r0c0"),)


@pytest.mark.parametrize(
    ("epochs", "accuracies", "action"),
    [
        (5, [50.0, 50.0, 50.0, 50.0, 50.0, 47.9], Prune("r0c0")),
        (5, [50.0, 50.0, 50.0, 50.0, 50.0, 48.0], Advance("r0c0")),
        (4, [50.0, 50.0, 50.0, 50.0, 20.0], Advance("r0c0")),
        (5, [20.0], Advance("r0c0")),
    ],
)
def test_a_seed_in_training_advances_unless_it_fails(
    epochs: int, accuracies: list[float], action: Action
) -> None:
    assert decide(HeuristicController(), slot(Stage.TRAINING, epochs), accuracies=accuracies) == (action,)


@pytest.mark.parametrize(
    ("ratio", "health", "epochs", "action"),
    [
        (1.0, 1.0, 30, Advance("r0c0")),
        (0.05, 1.0, 19, Advance("r0c0")),  # its gate says no, and may yet say yes
        (0.05, 1.0, 20, Prune("r0c0")),
        (1.0, 0.6, 20, Prune("r0c0")),
        (None, None, 20, Prune("r0c0")),
    ],
)
def test_a_seed_whose_gate_stays_shut_is_not_trained_for_ever(
    ratio: float | None, health: float | None, epochs: int, action: Action
) -> None:
    measured = SlotMeasurement(gradient_ratio=ratio, gradient_health=health)
    flat = [50.0] * (epochs + 1)
    found = decide(HeuristicController(), slot(Stage.TRAINING, epochs), accuracies=flat, measurement=measured)
    assert found == (action,)


def test_a_blending_seed_advances_when_alpha_has_arrived() -> None:
    arrived = slot(Stage.BLENDING, alpha=1.0, alpha_target=1.0)
    assert decide(HeuristicController(), arrived) == (Advance("r0c0"),)
    assert decide(HeuristicController(), replace(arrived, alpha=0.5, alpha_mode=AlphaMode.UP)) == ()


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.HOLDING])
def test_a_seed_on_its_way_out_is_left_alone(stage: Stage) -> None:
    leaving = slot(stage, epochs=50, alpha=0.5, alpha_mode=AlphaMode.DOWN)
    assert decide(HeuristicController(), leaving) == ()


@pytest.mark.parametrize(
    ("contribution", "health", "epochs", "actions"),
    [
        (1.0, 1.0, 1, (Advance("r0c0"),)),
        (1.0, 1.0, 30, (Advance("r0c0"),)),
        (0.9, 1.0, 9, ()),
        (0.9, 1.0, 10, (Prune("r0c0"),)),
        (0.5, 1.0, 1, ()),
        (0.4, 1.0, 1, (Prune("r0c0"),)),
        (None, 1.0, 9, ()),
        (None, 1.0, 10, (Prune("r0c0"),)),
        (3.0, 0.1, 9, ()),
        (3.0, 0.1, 10, (Prune("r0c0"),)),
    ],
)
def test_a_holding_seed_is_kept_for_its_contribution(
    contribution: float | None, health: float, epochs: int, actions: tuple[Action, ...]
) -> None:
    measured = SlotMeasurement(gradient_health=health, contribution=contribution)
    assert decide(HeuristicController(), slot(Stage.HOLDING, epochs), measurement=measured) == actions


@pytest.mark.parametrize("stage", [Stage.FOSSILIZED, Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING])
def test_nothing_to_do_for(stage: Stage) -> None:
    assert decide(HeuristicController(), slot(stage)) == ()


@pytest.mark.parametrize(
    ("record", "last", "measured", "reason"),
    [
        (EMPTY, 50.0, {}, "a plateau: less than 0.5 points gained in each of 3 epochs"),
        (slot(Stage.GERMINATED), 50.0, {}, ""),
        (slot(Stage.TRAINING, 5), 47.0, {}, "failing: -3.00 points of accuracy since it began, below -2"),
        (slot(Stage.TRAINING, 20), 50.0, {"gradient_ratio": 0.0}, ", and it has had its 20 epochs"),
        (slot(Stage.HOLDING, 3), 50.0, {"contribution": 0.25}, "of little use: below 0.5 points"),
        (slot(Stage.HOLDING, 10), 50.0, {"contribution": 0.6}, ", and it has been held for 10 epochs"),
    ],
)
def test_it_says_why(record: SlotRecord, last: float, measured: dict[str, Any], reason: str) -> None:
    measurement = replace(HEALTHY, **measured)
    signals = EpochSignals.of(9, FLAT, [*[50.0] * 20, last], [record], [measurement])
    decision = HeuristicController().decide(signals)
    (said,) = decision.reasons
    assert said.endswith(reason)
    assert bool(said) is bool(reason)
    if said.startswith("G"):
        assert "failed: " in said


def test_blueprints_take_turns() -> None:
    controller = HeuristicController()
    chosen = [decide(controller, EMPTY)[0] for _ in range(3)]
    assert chosen == [Germinate("r0c0", name) for name in ("norm", "conv_light", "norm")]


USELESS = SlotMeasurement(gradient_health=1.0, contribution=0.0)


def prune_norm(controller: HeuristicController) -> None:
    assert decide(controller, slot(Stage.HOLDING), measurement=USELESS) == (Prune("r0c0"),)


def penalties(controller: HeuristicController) -> object:
    return controller.state_dict()["penalties"]


def test_a_blueprint_pruned_again_loses_every_other_turn() -> None:
    controller = HeuristicController()
    prune_norm(controller)
    assert decide(controller, EMPTY) == (Germinate("r0c0", "norm"),)  # 2 < 3
    for _ in range(3):
        prune_norm(controller)
        assert penalties(controller) == {"norm": 4.0}
        chosen = [decide(controller, EMPTY)[0] for _ in range(3)]
        assert chosen == [Germinate("r0c0", name) for name in ("conv_light", "conv_light", "norm")]
        assert penalties(controller) == {"norm": 2.0}


def test_epochs_without_a_turn_fade_nothing() -> None:
    controller = HeuristicController()
    prune_norm(controller)
    prune_norm(controller)
    for _ in range(9):
        decide(controller, slot(Stage.TRAINING))
    assert penalties(controller) == {"norm": 4.0}


def test_a_fossil_clears_its_blueprint() -> None:
    controller = HeuristicController()
    prune_norm(controller)
    prune_norm(controller)
    assert decide(controller, slot(Stage.HOLDING)) == (Advance("r0c0"),)
    assert penalties(controller) == {}


def test_a_skipped_blueprint_gives_its_turn_to_the_next() -> None:
    controller = HeuristicController(HeuristicConfig(blueprints=("norm", "b", "c"), penalty_decay=0.9))
    prune_norm(controller)
    prune_norm(controller)  # 4, then 3.6, 3.24, 2.916
    chosen = [decide(controller, EMPTY)[0] for _ in range(7)]
    assert chosen == [Germinate("r0c0", name) for name in ("b", "c", "b", "c", "b", "c", "norm")]


def test_when_all_are_skipped_they_come_back_with_the_epochs() -> None:
    controller = HeuristicController(HeuristicConfig(blueprints=("norm",), penalty_decay=0.9))
    prune_norm(controller)
    prune_norm(controller)
    assert [decide(controller, EMPTY) for _ in range(3)] == [(), (), ()]
    assert decide(controller, EMPTY) == (Germinate("r0c0", "norm"),)


def test_the_state_goes_through_json_and_leads_to_the_same_decisions() -> None:
    one = HeuristicController(HeuristicConfig(penalty_decay=0.9))
    decide(one, EMPTY)
    prune_norm(one)
    prune_norm(one)
    other = HeuristicController(HeuristicConfig(penalty_decay=0.9))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [decide(one, EMPTY) for _ in range(6)] == [decide(other, EMPTY) for _ in range(6)]
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    "bad",
    [{}, {"turn": -1, "penalties": {}}, {"turn": 0, "penalties": {"lora": 1.0}}, {"turn": 0, "penalties": 3}],
)
def test_foreign_state_is_refused_and_changes_nothing(bad: dict[str, object]) -> None:
    controller = HeuristicController()
    decide(controller, EMPTY)
    before = controller.state_dict()
    with pytest.raises(BadState, match=r"heuristic\."):
        controller.load_state_dict(bad)
    assert controller.state_dict() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("blueprints", ()),
        ("plateau_epochs", 0),
        ("max_growing", 0),
        ("penalty_decay", 1.5),
        ("penalty_decay", 1.0),
        ("penalty_limit", 0.0),
        ("failing_points", None),
    ],
)
def test_a_config_names_what_it_refuses(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        HeuristicConfig(**{key: value})
    assert caught.value.key == f"heuristic.{key}"


@dataclass
class World:
    """A slot, a controller and the order of an epoch: measure, decide, apply, tick. Numbers are made up."""

    controller: HeuristicController
    gates: GateConfig
    config: SlotConfig
    contribution: float
    state: SlotState = field(default_factory=lambda: SlotState("r0c0"))
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def epoch(self, loss: float, accuracy: float, **measured_too: Any) -> Stage:
        """One epoch; the stage after it."""
        self.losses.append(loss)
        self.accuracies.append(accuracy)
        mixed_in = self.state.stage in (Stage.BLENDING, Stage.HOLDING)
        measured = replace(
            HEALTHY, **{"contribution": self.contribution if mixed_in else None, **measured_too}
        )
        seen = EpochSignals.of(
            len(self.losses), self.losses, self.accuracies, [self.state.record()], [measured]
        )
        self.decisions.append(self.controller.decide(seen))
        for action in self.decisions[-1].actions:
            if isinstance(action, Germinate):
                self.state = self.state.germinate(action.blueprint, self.config.blend)
            elif isinstance(action, Prune):
                self.state = self.state.prune(self.config.tempo)
            elif gate_for(seen.slots[0], self.gates).passed:
                self.state = self.state.advance(self.config)
        self.state = self.state.tick(self.config)
        return self.state.stage


def short_world(contribution: float, **changes: Any) -> World:
    gates = GateConfig(min_training_epochs=2, min_blending_epochs=2, min_improvement=0.1)
    heuristic = HeuristicConfig(plateau_epochs=2, stable_epochs=2, **changes)
    return World(HeuristicController(heuristic, gates), gates, SlotConfig(tempo=2), contribution)


def test_a_short_configuration_leads_to_a_fossil_within_a_dozen_epochs() -> None:
    world = short_world(contribution=2.0)
    stages = [world.epoch(1.0, 80.0 + 0.2 * epoch) for epoch in range(10)]
    assert [stage.name for stage in stages] == [
        *["DORMANT"] * 2,
        "GERMINATED",
        *["TRAINING"] * 2,
        *["BLENDING"] * 2,
        "HOLDING",
        *["FOSSILIZED"] * 2,
    ]
    assert world.state.alpha.alpha == 1.0


def test_a_useless_seed_is_pruned_and_the_next_blueprint_gets_its_turn() -> None:
    world = short_world(contribution=0.0)
    stages = [world.epoch(1.0, 80.0 + 0.2 * epoch) for epoch in range(18)]
    assert [stage.name for stage in stages[7:]] == [
        "HOLDING",
        "HOLDING",
        "PRUNED",
        *["EMBARGOED"] * 5,
        "RESETTING",
        "DORMANT",
        "GERMINATED",
    ]
    assert (world.state.blueprint, world.state.birth) == ("conv_light", 2)


def test_with_the_thresholds_of_the_design_a_life_takes_its_time() -> None:
    gates = GateConfig()
    world = World(HeuristicController(), gates, SlotConfig(), contribution=2.0)
    stages = [world.epoch(1.0, 50.0 + 0.1 * epoch) for epoch in range(30)]
    assert lengths(stages) == [
        *[("DORMANT", 3), ("GERMINATED", 1), ("TRAINING", 10)],
        *[("BLENDING", 10), ("HOLDING", 1), ("FOSSILIZED", 5)],
    ]


def lengths(stages: list[Stage]) -> list[tuple[str, int]]:
    return [(stage.name, len(list(run))) for stage, run in groupby(stages)]


def test_on_a_host_that_gains_nothing_more_a_seed_gets_its_chance() -> None:
    """A plateau is where seeds germinate: to ask for the host's own gain for ever would end all growth."""
    world = World(HeuristicController(), GateConfig(), SlotConfig(), contribution=2.0)
    stages = [world.epoch(1.0, 50.0) for _ in range(40)]
    assert lengths(stages) == [
        *[("DORMANT", 3), ("GERMINATED", 1), ("TRAINING", 20)],
        *[("BLENDING", 10), ("HOLDING", 1), ("FOSSILIZED", 5)],
    ]


def test_on_a_host_that_gains_nothing_more_a_seed_that_does_not_learn_goes() -> None:
    world = World(HeuristicController(), GateConfig(), SlotConfig(), contribution=2.0)
    stages = [world.epoch(1.0, 50.0, gradient_ratio=0.01) for _ in range(40)]
    assert lengths(stages) == [
        *[("DORMANT", 3), ("GERMINATED", 1), ("TRAINING", 20)],
        *[
            ("PRUNED", 1),
            ("EMBARGOED", 5),
            ("RESETTING", 1),
            ("DORMANT", 1),
            ("GERMINATED", 1),
            ("TRAINING", 7),
        ],
    ]
    assert (world.state.blueprint, world.state.birth) == ("conv_light", 2)


def test_blueprints_that_are_pruned_again_and_again_are_left_alone_for_lives() -> None:
    blueprints = ("norm", "conv_light", "attention")
    world = short_world(contribution=2.0, blueprints=blueprints)
    born = []
    for epoch in range(300):
        world.contribution = 0.0 if world.state.blueprint == "norm" else 2.0
        if world.state.stage is Stage.FOSSILIZED:
            world.state = SlotState("r0c0", birth=world.state.birth)  # the next slot
        birth = world.state.birth
        world.epoch(1.0, 80.0 + 0.2 * epoch)
        if world.state.birth > birth:
            born.append(str(world.state.blueprint))
    three = ["conv_light", "attention"]
    assert born[:16] == ["norm", *three, "norm", *three, *three, "norm", *three, *three, "norm", *three]


UNSURE = st.none() | st.floats()
MEASURED: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict, gradient_ratio=UNSURE, gradient_health=UNSURE, contribution=UNSURE, exploding=st.booleans()
)
EPOCH = st.tuples(st.floats(0.01, 5.0), st.floats(0.0, 100.0), MEASURED)


@given(
    permissive=st.booleans(),
    # All different, or all the same: what does not pass then, never will.
    epochs=st.lists(EPOCH, min_size=60, max_size=60) | EPOCH.map(lambda epoch: [epoch] * 60),
)
def test_no_numbers_hold_up_a_seed_for_ever(
    permissive: bool, epochs: list[tuple[float, float, dict[str, Any]]]
) -> None:
    gates = GateConfig(
        permissive=permissive, min_training_epochs=2, max_training_epochs=4, min_blending_epochs=2
    )
    heuristic = HeuristicConfig(plateau_points=200.0, stable_epochs=1, stable_fall=1.0, stable_rise=1.0)
    world = World(HeuristicController(heuristic, gates), gates, SlotConfig(tempo=2), contribution=0.0)
    stages = [world.epoch(loss, accuracy, **measured) for loss, accuracy, measured in epochs]
    # HOLDING ends by its time-out of 10 epochs, and alpha's way down.
    longest = {"GERMINATED": 1, "TRAINING": 4, "BLENDING": 2, "HOLDING": 12}
    for name, length in lengths(stages):
        assert length <= longest.get(name, 60), name


def test_two_controllers_on_the_same_numbers_decide_the_same() -> None:
    one, other = short_world(contribution=0.7), short_world(contribution=0.7)
    for epoch in range(40):
        one.epoch(1.0, 80.0 + 0.2 * epoch)
        other.epoch(1.0, 80.0 + 0.2 * epoch)
    assert [d.digest() for d in one.decisions] == [d.digest() for d in other.decisions]
