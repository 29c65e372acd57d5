"""What the policy can choose: an operation, and what belongs to it; and what it may choose in an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from esper.control.actions import Action, Advance, Decision, Germinate, Prune, SetAlpha
from esper.control.signals import EpochSignals, SlotView, gate_for
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.config import Blend
from esper.lifecycle.gates import GateConfig
from esper.lifecycle.stage import Stage


class Op(IntEnum):
    """The first head of an action. The codes are the policy's outputs, so they are part of its format."""

    WAIT = 0
    GERMINATE = 1
    ADVANCE = 2
    SET_ALPHA = 3
    PRUNE = 4
    FOSSILIZE = 5


class Choice(NamedTuple):
    """One index a head. Of a head that does not belong to the operation it is 0, and means nothing."""

    op: int
    slot: int = 0
    blueprint: int = 0
    blend: int = 0
    target: int = 0
    tempo: int = 0


# The heads that belong to each operation, besides `op` itself.
HEADS: Mapping[Op, tuple[str, ...]] = MappingProxyType(
    {
        Op.WAIT: (),
        Op.GERMINATE: ("slot", "blueprint", "blend"),
        Op.ADVANCE: ("slot",),
        Op.SET_ALPHA: ("slot", "target", "tempo"),
        Op.PRUNE: ("slot", "tempo"),
        Op.FOSSILIZE: ("slot",),
    }
)
_SEEDED = (Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
_MIXED = (Stage.BLENDING, Stage.HOLDING)


class Masks(NamedTuple):
    """What may be chosen. The other heads are always open."""

    op: tuple[bool, ...]  # (ops,)
    slot: tuple[tuple[bool, ...], ...]  # (ops, slots)
    target: tuple[tuple[bool, ...], ...]  # (slots, targets)


@dataclass(frozen=True, slots=True)
class ActionSpace:
    """The choices of one model; slots by id, in forward order."""

    slots: tuple[str, ...]
    blueprints: tuple[str, ...]
    blends: tuple[Blend, ...]
    targets: tuple[float, ...]
    tempos: tuple[int, ...]

    def masks(self, signals: EpochSignals, gates: GateConfig) -> Masks:
        """What may be done after this epoch: what a slot's state permits, and for a step to the next stage
        what its gate does.
        """
        permitted = [[_permits(op, view, gates, self) for view in signals.slots] for op in Op]
        permitted[Op.WAIT] = [False] * len(signals.slots)
        return Masks(
            op=tuple(op is Op.WAIT or any(row) for op, row in zip(Op, permitted, strict=True)),
            slot=tuple(tuple(row) for row in permitted),
            target=tuple(
                tuple(target != view.record.alpha_target for target in self.targets) for view in signals.slots
            ),
        )

    def only_wait(self) -> Masks:
        """Masks that permit nothing else."""
        slots = tuple(tuple(False for _ in self.slots) for _ in Op)
        return Masks(
            tuple(op is Op.WAIT for op in Op),
            slots,
            tuple(tuple(True for _ in self.targets) for _ in self.slots),
        )

    def decision(self, choice: Choice) -> Decision:
        """What the trainer is told."""
        action = self._action(Op(choice.op), choice)
        return Decision() if action is None else Decision((action,))

    def _action(self, op: Op, choice: Choice) -> Action | None:
        slot_id = self.slots[choice.slot]
        match op:
            case Op.GERMINATE:
                return Germinate(slot_id, self.blueprints[choice.blueprint], self.blends[choice.blend])
            case Op.ADVANCE | Op.FOSSILIZE:
                return Advance(slot_id)
            case Op.SET_ALPHA:
                return SetAlpha(slot_id, self.targets[choice.target], self.tempos[choice.tempo])
            case Op.PRUNE:
                return Prune(slot_id, self.tempos[choice.tempo])
            case Op.WAIT:
                return None


def _permits(op: Op, view: SlotView, gates: GateConfig, space: ActionSpace) -> bool:
    record = view.record
    holds = record.alpha_mode == AlphaMode.HOLD
    retreats = record.alpha_mode == AlphaMode.DOWN and record.alpha_target == 0.0
    match op:
        case Op.GERMINATE:
            return record.stage is Stage.DORMANT
        case Op.ADVANCE:
            # A gate that does not pass, as none does for a seed on its way out, would make it a wait by
            # another name.
            before_holding = record.stage in _SEEDED and record.stage is not Stage.HOLDING
            return before_holding and gate_for(view, gates).passed
        case Op.FOSSILIZE:
            return record.stage is Stage.HOLDING and holds and gate_for(view, gates).passed
        case Op.SET_ALPHA:
            others = any(target != record.alpha_target for target in space.targets)
            return record.stage in _MIXED and holds and others
        case Op.PRUNE:
            return record.stage in _SEEDED and not retreats
        case Op.WAIT:
            return True
