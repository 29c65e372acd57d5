"""The random controller: the same bits, the same decision; only what a slot allows; as often as it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.control import (
    Advance,
    Decision,
    EpochSignals,
    Germinate,
    IdleController,
    Prune,
    RandomConfig,
    RandomController,
)
from esper.errors import ConfigError
from esper.lifecycle import AlphaMode, SlotMeasurement, SlotRecord, Stage

DRAWS = 2000
DEFAULTS = RandomConfig()


def slot(stage: Stage, number: int = 0, mode: AlphaMode = AlphaMode.HOLD) -> SlotRecord:
    blueprint = None if stage is Stage.DORMANT else "norm"
    return SlotRecord(f"r0c{number}", stage, blueprint, 1, 3, 0.0, 1.0, mode, 0)


def decided(bits: int, *records: SlotRecord, config: RandomConfig = DEFAULTS) -> Decision:
    signals = EpochSignals.of(9, [1.0], [50.0], records, [SlotMeasurement()] * len(records), bits)
    return RandomController(config).decide(signals)


def share(kind: type, *records: SlotRecord, config: RandomConfig = DEFAULTS) -> float:
    found = [decided(bits, *records, config=config).actions for bits in range(DRAWS)]
    return sum(any(isinstance(action, kind) for action in actions) for actions in found) / DRAWS


def test_the_same_bits_decide_the_same() -> None:
    records = slot(Stage.TRAINING), slot(Stage.DORMANT, 1)
    busy = RandomConfig(germinate=0.5, max_growing=2)
    decisions = [decided(bits, *records, config=busy) for bits in range(200)]
    assert decisions == [decided(bits, *records, config=busy) for bits in range(200)]
    assert len(set(decisions)) > 3


def test_things_happen_as_often_as_configured() -> None:
    config = RandomConfig(germinate=0.3, advance=0.4, prune=0.2)
    assert share(Germinate, slot(Stage.DORMANT), config=config) == pytest.approx(0.3, abs=0.04)
    assert share(Advance, slot(Stage.TRAINING), config=config) == pytest.approx(0.4, abs=0.04)
    assert share(Prune, slot(Stage.TRAINING), config=config) == pytest.approx(0.2, abs=0.04)


def test_every_vacant_slot_and_blueprint_has_its_turn() -> None:
    config = RandomConfig(blueprints=("norm", "conv_light"), germinate=1.0)
    records = tuple(slot(Stage.DORMANT, number) for number in range(3))
    found = {decided(bits, *records, config=config).actions for bits in range(DRAWS)}
    assert found == {
        (Germinate(f"r0c{number}", name),) for number in range(3) for name in ("norm", "conv_light")
    }


@pytest.mark.parametrize(
    "record",
    [
        slot(Stage.FOSSILIZED),
        slot(Stage.PRUNED),
        slot(Stage.EMBARGOED),
        slot(Stage.RESETTING),
        slot(Stage.HOLDING, mode=AlphaMode.DOWN),
    ],
    ids=lambda record: record.stage.name,
)
def test_a_slot_that_allows_nothing_is_left_alone(record: SlotRecord) -> None:
    always = RandomConfig(germinate=1.0, advance=0.5, prune=0.5)
    assert all(decided(bits, record, config=always) == Decision() for bits in range(50))


def test_a_ramp_is_not_advanced_before_its_end() -> None:
    config = RandomConfig(advance=1.0, prune=0.0)
    assert share(Advance, slot(Stage.BLENDING, mode=AlphaMode.UP), config=config) == 0.0
    assert share(Advance, slot(Stage.BLENDING), config=config) == 1.0


def test_no_more_seeds_grow_than_may() -> None:
    always = RandomConfig(germinate=1.0)
    records = slot(Stage.TRAINING), slot(Stage.DORMANT, 1)
    assert share(Germinate, *records, config=always) == 0.0
    assert share(Germinate, *records, config=replace(always, max_growing=2)) == 1.0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"blueprints": ()}, "random.blueprints"),
        ({"germinate": 1.5}, "random.germinate"),
        ({"advance": 0.7, "prune": 0.4}, "random.prune"),
        ({"max_growing": 0}, "random.max_growing"),
    ],
)
def test_wrong_values_are_refused_by_their_path(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}="):
        RandomConfig(**changes)  # type: ignore[arg-type]


def test_the_idle_controller_waits() -> None:
    signals = EpochSignals.of(9, [1.0], [50.0], [slot(Stage.DORMANT)], [SlotMeasurement()])
    assert IdleController().decide(signals) == Decision()
