"""A controller that draws what to do: what growing without a reason comes to."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from esper.checks import check_int, check_number
from esper.control.actions import Action, Advance, Decision, Germinate, Prune
from esper.control.signals import EpochSignals, SlotView
from esper.errors import ConfigError
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.stage import Stage, has_seed


@dataclass(frozen=True, slots=True)
class RandomConfig:
    """How often the random controller does something, as chances in an epoch."""

    blueprints: tuple[str, ...] = ("norm", "conv_light")  # equally likely
    germinate: float = 0.1  # where there is a vacant slot and fewer than `max_growing` seeds are under way
    advance: float = 0.5  # of each seed; the gate before its next stage still decides
    prune: float = 0.02  # of each seed that is no fossil
    max_growing: int = 1

    def __post_init__(self) -> None:
        if not self.blueprints:
            raise ConfigError("random.blueprints", self.blueprints, "at least one blueprint name")
        for name in ("germinate", "advance", "prune"):
            check_number(f"random.{name}", getattr(self, name), 0.0, 1.0)
        if self.advance + self.prune > 1.0:
            raise ConfigError("random.prune", self.prune, f"at most 1 - random.advance={self.advance:g}")
        check_int("random.max_growing", self.max_growing, 1)


@dataclass
class RandomController:
    """Draws from the epoch's agreed random bits, so that every rank draws the same."""

    config: RandomConfig = field(default_factory=RandomConfig)

    def decide(self, signals: EpochSignals) -> Decision:
        """What the epoch's bits say; the same bits and slots give the same decision."""
        draw = random.Random(signals.random_bits)
        actions = [action for view in signals.slots if (action := self._on_seed(view, draw)) is not None]
        if (germination := self._germination(signals, draw)) is not None:
            actions.append(germination)
        return Decision(tuple(actions), ("drawn",) * len(actions))

    def _on_seed(self, view: SlotView, draw: random.Random) -> Action | None:
        record, chance = view.record, draw.random()
        if not has_seed(record.stage) or record.stage is Stage.FOSSILIZED:
            return None
        if record.alpha_mode == AlphaMode.DOWN:  # on its way out
            return None
        if chance < self.config.advance:
            blending = record.stage is Stage.BLENDING and record.alpha_mode != AlphaMode.HOLD
            return None if blending else Advance(record.slot_id)
        if chance < self.config.advance + self.config.prune:
            return Prune(record.slot_id)
        return None

    def _germination(self, signals: EpochSignals, draw: random.Random) -> Germinate | None:
        chance, slot, blueprint = draw.random(), draw.random(), draw.choice(self.config.blueprints)
        records = [view.record for view in signals.slots]
        growing = sum(has_seed(record.stage) and record.stage is not Stage.FOSSILIZED for record in records)
        vacant = [record.slot_id for record in records if record.stage is Stage.DORMANT]
        if chance >= self.config.germinate or growing >= self.config.max_growing or not vacant:
            return None
        return Germinate(vacant[int(slot * len(vacant))], blueprint)
