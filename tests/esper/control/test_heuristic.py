"""The heuristic's rules one by one, and whole lives driven by them without any training."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

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


def test_blueprints_take_turns() -> None:
    controller = HeuristicController()
    chosen = [decide(controller, EMPTY)[0] for _ in range(3)]
    assert chosen == [Germinate("r0c0", name) for name in ("norm", "conv_light", "norm")]


USELESS = SlotMeasurement(gradient_health=1.0, contribution=0.0)


def prune_norm(controller: HeuristicController) -> None:
    assert decide(controller, slot(Stage.HOLDING), measurement=USELESS) == (Prune("r0c0"),)


def test_a_blueprint_is_skipped_until_its_penalty_has_faded() -> None:
    controller = HeuristicController(HeuristicConfig(blueprints=("norm",), penalty_decay=0.9))
    prune_norm(controller)
    prune_norm(controller)  # 1.8 + 2, then 3.42, 3.078, 2.77
    assert [decide(controller, EMPTY) for _ in range(2)] == [(), ()]
    assert decide(controller, EMPTY) == (Germinate("r0c0", "norm"),)


def test_penalties_add_up_and_halve_each_epoch() -> None:
    controller = HeuristicController()
    prune_norm(controller)
    prune_norm(controller)
    assert controller.state_dict()["penalties"] == {"norm": 3.0}
    decide(controller)
    assert controller.state_dict()["penalties"] == {"norm": 1.5}


def test_a_skipped_blueprint_gives_its_turn_to_the_next() -> None:
    controller = HeuristicController(HeuristicConfig(blueprints=("norm", "b", "c"), penalty_decay=1.0))
    prune_norm(controller)
    prune_norm(controller)
    chosen = [decide(controller, EMPTY)[0] for _ in range(3)]
    assert chosen == [Germinate("r0c0", name) for name in ("b", "c", "b")]


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

    def epoch(self, loss: float, accuracy: float) -> Stage:
        """One epoch; the stage after it."""
        self.losses.append(loss)
        self.accuracies.append(accuracy)
        mixed_in = self.state.stage in (Stage.BLENDING, Stage.HOLDING)
        measured = replace(HEALTHY, contribution=self.contribution if mixed_in else None)
        seen = EpochSignals.of(
            len(self.losses), self.losses, self.accuracies, [self.state.record()], [measured]
        )
        self.decisions.append(self.controller.decide(seen))
        for action in self.decisions[-1].actions:
            if isinstance(action, Germinate):
                self.state = self.state.germinate(action.blueprint)
            elif isinstance(action, Prune):
                self.state = self.state.prune(self.config.tempo)
            elif gate_for(seen.slots[0], self.gates).passed:
                self.state = self.state.advance(self.config)
        self.state = self.state.tick(self.config)
        return self.state.stage


def short_world(contribution: float) -> World:
    gates = GateConfig(min_training_epochs=2, min_blending_epochs=2, min_improvement=0.1)
    heuristic = HeuristicConfig(plateau_epochs=2, stable_epochs=2)
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
    lengths = {stage.name: stages.count(stage) for stage in dict.fromkeys(stages)}
    assert lengths == {
        "DORMANT": 3,
        "GERMINATED": 1,
        "TRAINING": 10,
        "BLENDING": 10,
        "HOLDING": 1,
        "FOSSILIZED": 5,
    }


def test_two_controllers_on_the_same_numbers_decide_the_same() -> None:
    one, other = short_world(contribution=0.7), short_world(contribution=0.7)
    for epoch in range(40):
        one.epoch(1.0, 80.0 + 0.2 * epoch)
        other.epoch(1.0, 80.0 + 0.2 * epoch)
    assert [d.digest() for d in one.decisions] == [d.digest() for d in other.decisions]
