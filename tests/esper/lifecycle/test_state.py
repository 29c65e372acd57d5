"""One slot's life: every way through it, and every refusal."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from esper.errors import (
    AlphaNotHolding,
    BadState,
    ConfigError,
    EsperError,
    FossilPruned,
    IllegalTransition,
    SlotEmpty,
    SlotOccupied,
)
from esper.lifecycle import (
    TRANSITIONS,
    AlphaCurve,
    AlphaMode,
    Blend,
    SlotConfig,
    SlotRecord,
    SlotState,
    Stage,
    can_move,
    has_seed,
    in_forward,
)

CONFIG = SlotConfig(tempo=4)


def state_in(stage: Stage, config: SlotConfig = CONFIG, blend: Blend = Blend.ADD) -> SlotState:
    """A slot that got to this stage the ordinary way."""
    state = SlotState("r0c0")
    if stage is Stage.DORMANT:
        return state
    state = state.germinate("norm", blend)
    if stage in (Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING):
        state = state.prune(0)
        while state.stage is not stage:
            state = state.tick(config)
        return state
    while state.stage is not stage:
        while state.stage is Stage.HOLDING and state.alpha.mode is not AlphaMode.HOLD:
            state = state.tick(config)
        state = state.advance(config).tick(config)
    return state


def run(state: SlotState, ticks: int) -> SlotState:
    for _ in range(ticks):
        state = state.tick(CONFIG)
    return state


def test_a_fresh_slot_is_empty() -> None:
    assert SlotState("r0c0").record() == SlotRecord("r0c0", Stage.DORMANT, None, 0, 0, 0.0, 0.0, 0, 0)


def test_birth_is_counted_and_the_blueprint_kept() -> None:
    record = SlotState("r0c0").germinate("norm", Blend.ADD).record()
    assert (record.stage, record.blueprint, record.birth) == (Stage.GERMINATED, "norm", 1)


@pytest.mark.parametrize("stage", Stage)
def test_a_seed_is_mixed_as_it_was_chosen_to_be_for_as_long_as_it_is_there(stage: Stage) -> None:
    state = state_in(stage, blend=Blend.GATE)
    assert state.blend is state.record().blend is (Blend.GATE if has_seed(stage) else None)
    assert SlotState.from_dict(state.to_dict()) == state
    assert type(state.to_dict()["blend"]) in (str, type(None))


def test_a_blend_is_one_of_those_there_are() -> None:
    with pytest.raises(ConfigError, match="blend='gate' is not accepted: must be one of add, multiply, gate"):
        SlotState("r0c0").germinate("norm", "gate")  # type: ignore[arg-type]


def test_the_ordinary_life() -> None:
    state, stages = SlotState("r0c0").germinate("norm", Blend.ADD), [Stage.GERMINATED]
    while state.stage is not Stage.FOSSILIZED:
        state = state.advance(SlotConfig(tempo=0))
        stages.append(state.stage)
    assert stages == [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]


def test_alpha_leaves_0_in_the_epoch_that_enters_blending() -> None:
    entered = state_in(Stage.TRAINING).advance(CONFIG)
    assert (entered.alpha.alpha, entered.alpha.mode) == (0.0, AlphaMode.UP)
    assert [run(entered, ticks).alpha.alpha for ticks in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_tempo_0_is_at_once() -> None:
    entered = state_in(Stage.TRAINING).advance(SlotConfig(tempo=0, alpha_target=0.5))
    assert (entered.alpha.alpha, entered.alpha.mode) == (0.5, AlphaMode.HOLD)


def test_the_config_shapes_the_ramp() -> None:
    config = SlotConfig(curve=AlphaCurve.SIGMOID, steepness=3.0, alpha_target=0.7, tempo=8)
    alpha = state_in(Stage.TRAINING, config).advance(config).alpha
    assert (alpha.curve, alpha.steepness, alpha.target, alpha.ticks) == (AlphaCurve.SIGMOID, 3.0, 0.7, 8)


def test_epochs_in_stage_are_those_trained_in_it_when_the_next_decision_comes() -> None:
    state = run(state_in(Stage.TRAINING), 2).advance(CONFIG)
    assert state.epochs_in_stage == 0
    assert [run(state, ticks).epochs_in_stage for ticks in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("stage", [Stage.GERMINATED, Stage.TRAINING])
def test_what_is_not_mixed_in_is_pruned_at_once(stage: Stage) -> None:
    pruned = state_in(stage).prune(4)
    assert (pruned.stage, pruned.blueprint, pruned.birth) == (Stage.PRUNED, None, 1)


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.HOLDING])
def test_what_is_mixed_in_goes_down_first_and_leaves_on_arrival(stage: Stage) -> None:
    state = run(state_in(stage), 5).prune(4)
    assert state.stage is stage
    assert state.retreating
    ramp = [run(state, ticks) for ticks in (1, 2, 3, 4)]
    assert [each.alpha.alpha for each in ramp] == [0.75, 0.5, 0.25, 0.0]
    assert [each.stage for each in ramp] == [stage, stage, stage, Stage.PRUNED]
    assert ramp[-1].blueprint is None


def test_a_prune_interrupts_the_way_up() -> None:
    state = state_in(Stage.BLENDING)
    assert state.alpha.mode is AlphaMode.UP
    assert state.prune(1).tick(CONFIG).stage is Stage.PRUNED


def test_a_prune_before_the_first_tick_has_no_way_to_go() -> None:
    assert state_in(Stage.TRAINING).advance(CONFIG).prune(4).stage is Stage.PRUNED


def test_a_prune_under_way_can_be_cut_short_but_not_begun_again() -> None:
    state = run(state_in(Stage.HOLDING), 4).prune(4).tick(CONFIG)
    with pytest.raises(IllegalTransition, match="it is being pruned, 3 ticks left"):
        state.prune(4)
    with pytest.raises(IllegalTransition, match="cannot advance: it is being pruned, 3 ticks left"):
        state.advance(CONFIG)
    assert state.prune(0).stage is Stage.PRUNED


def test_the_cooldown_takes_its_epochs() -> None:
    state = run(state_in(Stage.HOLDING), 4).prune(0)
    stages = []
    for _ in range(9):
        state = state.tick(CONFIG)
        stages.append(state.stage.name)
    assert stages == ["PRUNED", *["EMBARGOED"] * 5, "RESETTING", "DORMANT", "DORMANT"]
    assert state.germinate("norm", Blend.ADD).birth == 2


def test_a_cooldown_entered_by_a_tick_is_as_long_as_one_entered_by_a_decision() -> None:
    arriving = run(state_in(Stage.HOLDING), 4).prune(1).tick(CONFIG)
    at_once = run(state_in(Stage.HOLDING), 4).prune(0).tick(CONFIG)
    assert arriving == at_once


def test_a_fossil_keeps_its_alpha() -> None:
    fossil = state_in(Stage.FOSSILIZED, SlotConfig(tempo=0, alpha_target=0.7))
    assert run(fossil, 20).alpha.alpha == 0.7


def test_alpha_on_its_way_is_not_kept_for_good() -> None:
    holding = state_in(Stage.BLENDING).advance(CONFIG)
    for left in range(3, 0, -1):
        with pytest.raises(IllegalTransition, match=f"HOLDING.*{left} ticks? left"):
            holding.advance(CONFIG)
        holding = holding.tick(CONFIG)
    assert holding.advance(CONFIG).record().alpha == 1.0


@pytest.mark.parametrize("stage", Stage)
def test_germinate_only_in_an_empty_slot(stage: Stage) -> None:
    state = state_in(stage)
    if stage is Stage.DORMANT:
        state.check_vacant()
        return
    with pytest.raises(SlotOccupied if has_seed(stage) else IllegalTransition, match=stage.name):
        state.germinate("conv_light", Blend.ADD)


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        (Stage.DORMANT, SlotEmpty),
        (Stage.FOSSILIZED, IllegalTransition),
        (Stage.PRUNED, IllegalTransition),
        (Stage.EMBARGOED, IllegalTransition),
        (Stage.RESETTING, IllegalTransition),
    ],
)
def test_where_advance_is_refused(stage: Stage, error: type[EsperError]) -> None:
    with pytest.raises(error):
        state_in(stage).advance(CONFIG)


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        (Stage.DORMANT, SlotEmpty),
        (Stage.FOSSILIZED, FossilPruned),
        (Stage.PRUNED, IllegalTransition),
        (Stage.EMBARGOED, IllegalTransition),
        (Stage.RESETTING, IllegalTransition),
    ],
)
@pytest.mark.parametrize("tempo", [0, 3])
def test_where_prune_is_refused(stage: Stage, error: type[EsperError], tempo: int) -> None:
    with pytest.raises(error):
        state_in(stage).prune(tempo)


def test_a_negative_tempo_is_refused() -> None:
    with pytest.raises(ConfigError, match="tempo=-1"):
        state_in(Stage.TRAINING).prune(-1)


def test_alpha_is_sent_elsewhere_from_holding_by_way_of_blending() -> None:
    state = run(state_in(Stage.HOLDING), 4).retarget(0.5, 2, CONFIG)
    assert (state.stage, state.epochs_in_stage, state.retreating) == (Stage.BLENDING, 0, False)
    assert [run(state, ticks).alpha.alpha for ticks in (0, 1, 2)] == [1.0, 0.75, 0.5]
    again = run(state, 2).retarget(1.0, 1, CONFIG)
    assert (again.stage, again.epochs_in_stage) == (Stage.BLENDING, 2)
    assert repr(run(state, 2).retarget(1, 1, CONFIG)) == repr(again)


@pytest.mark.parametrize(
    ("stage", "target", "error"),
    [
        (Stage.DORMANT, 0.5, SlotEmpty),
        (Stage.TRAINING, 0.5, IllegalTransition),
        (Stage.FOSSILIZED, 0.5, IllegalTransition),
        (Stage.PRUNED, 0.5, IllegalTransition),
        (Stage.BLENDING, 0.5, AlphaNotHolding),
        (Stage.HOLDING, 0.0, ConfigError),
        (Stage.HOLDING, 1.5, ConfigError),
        (Stage.HOLDING, float("nan"), ConfigError),
    ],
)
def test_where_retarget_is_refused(stage: Stage, target: float, error: type[EsperError]) -> None:
    with pytest.raises(error):
        state_in(stage).retarget(target, 2, CONFIG)


@pytest.mark.parametrize("stage", Stage)
def test_it_survives_saving(stage: Stage) -> None:
    state = state_in(stage)
    assert SlotState.from_dict(state.to_dict()) == state


def test_a_retreat_survives_saving() -> None:
    state = run(state_in(Stage.HOLDING), 4).prune(4).tick(CONFIG)
    assert SlotState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize(
    ("stage", "change", "where"),
    [
        (Stage.TRAINING, {"stage": 5}, "slot 'r0c0'.stage"),
        (Stage.TRAINING, {"stage": "TRAINING"}, "slot 'r0c0'.stage"),
        (Stage.TRAINING, {"stage": 1}, "slot 'r0c0'.blueprint"),
        (Stage.TRAINING, {"blueprint": None}, "slot 'r0c0'.blueprint"),
        (Stage.TRAINING, {"birth": -1}, "slot 'r0c0'.birth"),
        (Stage.TRAINING, {"alpha": 0.5}, "slot 'r0c0'.alpha"),
        (Stage.TRAINING, {"slot_id": 3}, "slot.slot_id"),
        (Stage.TRAINING, {"mood": "good"}, "slot"),
        (Stage.TRAINING, {"blend": None}, "slot 'r0c0'.blend"),
        (Stage.TRAINING, {"blend": "mix"}, "slot 'r0c0'.blend"),
        (Stage.TRAINING, {"blend": ["add"]}, "slot 'r0c0'.blend"),
        (Stage.PRUNED, {"blend": "add"}, "slot 'r0c0'.blend"),
    ],
)
def test_foreign_state_is_refused_by_name(stage: Stage, change: dict[str, object], where: str) -> None:
    with pytest.raises(BadState) as caught:
        SlotState.from_dict({**state_in(stage).to_dict(), **change})
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alpha_target", 0.0),
        ("alpha_target", 1.5),
        ("tempo", -1),
        ("steepness", 0.0),
        ("pruned_epochs", 0),
        ("embargoed_epochs", 0),
        ("resetting_epochs", 0),
        ("blend", "add"),
    ],
)
def test_a_config_names_what_it_refuses(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        SlotConfig(**{key: value})  # type: ignore[arg-type]
    assert caught.value.key == f"slot.{key}"


class AnyLife(RuleBasedStateMachine):
    """Whatever is asked of a slot, it moves along the table or refuses and stays."""

    def __init__(self) -> None:
        super().__init__()
        self.state = SlotState("r0c0")

    def attempt(self, name: str, *arguments: object) -> None:
        before = self.state
        try:
            after: SlotState = getattr(before, name)(*arguments)
        except (SlotEmpty, SlotOccupied, FossilPruned, IllegalTransition, AlphaNotHolding, ConfigError):
            return
        assert after.stage is before.stage or can_move(before.stage, after.stage)
        self.state = after

    @rule(blueprint=st.sampled_from(["norm", "conv_light"]), blend=st.sampled_from(Blend))
    def germinate(self, blueprint: str, blend: Blend) -> None:
        self.attempt("germinate", blueprint, blend)

    @rule(full=st.sampled_from([0.5, 1.0]), tempo=st.integers(0, 3), curve=st.sampled_from(AlphaCurve))
    def advance(self, full: float, tempo: int, curve: AlphaCurve) -> None:
        self.attempt("advance", SlotConfig(alpha_target=full, tempo=tempo, curve=curve))

    @rule(tempo=st.integers(0, 3))
    def prune(self, tempo: int) -> None:
        self.attempt("prune", tempo)

    @rule(full=st.sampled_from([0.0, 0.5, 1.0]), ticks=st.integers(0, 3))
    def retarget(self, full: float, ticks: int) -> None:
        self.attempt("retarget", full, ticks, CONFIG)

    @rule()
    def tick(self) -> None:
        self.attempt("tick", CONFIG)

    @precondition(lambda self: bool(TRANSITIONS[self.state.stage]))
    @rule()
    def every_stage_but_the_last_can_be_left(self) -> None:
        state = self.state.germinate("norm", Blend.ADD) if self.state.stage is Stage.DORMANT else self.state
        for _ in range(40):
            if state.stage is Stage.DORMANT:
                return
            if has_seed(state.stage) and not state.retreating:
                state = state.prune(2)
            state = state.tick(CONFIG)
        raise AssertionError(f"still in {state.stage.name}")

    @invariant()
    def stage_seed_and_alpha_agree(self) -> None:
        state, record = self.state, self.state.record()
        assert (record.blueprint is not None) == (record.blend is not None) == has_seed(record.stage)
        if not in_forward(record.stage) or record.stage is Stage.TRAINING:
            assert (record.alpha, record.alpha_mode) == (0.0, AlphaMode.HOLD)
        if state.retreating:
            assert record.stage in (Stage.BLENDING, Stage.HOLDING)
        assert SlotState.from_dict(state.to_dict()) == state


AnyLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyLife = AnyLife.TestCase
