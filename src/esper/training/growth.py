"""How a decision becomes a change of the model: prepared on each rank, confirmed by all, then committed."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from esper.control.actions import Action, Advance, Decision, Germinate, SetAlpha
from esper.control.signals import EpochSignals, gate_for
from esper.distributed.agreement import Agreed, Agreement
from esper.distributed.audit import State, digest_of
from esper.distributed.digest import run_digest
from esper.distributed.growth import Birth, birth_generator, prepare_birth
from esper.distributed.rows import GrowthRecord, GrowthStep
from esper.errors import GrowthFailed, LifecycleDivergence
from esper.lifecycle.config import SlotConfig
from esper.lifecycle.gates import GateVerdict, evaluate_gate
from esper.lifecycle.stage import Stage
from esper.lifecycle.state import SlotState
from esper.model import GrownModel
from esper.modules import named_tensors
from esper.training.config import TrainConfig
from esper.training.history import Dissent

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedAction:
    """An action that every rank is about to take, with what it needs: nothing of it shows yet."""

    action: Action
    birth: Birth | None = None
    verdict: GateVerdict | None = None

    @property
    def goes_ahead(self) -> bool:
        """Whether no gate stands in its way."""
        return self.verdict is None or self.verdict.passed

    def step(self) -> GrowthStep:
        """What the ranks compare of it."""
        seed = self.birth.seed if self.birth else None
        return GrowthStep(
            slot_id=self.action.slot_id,
            action=re.sub(r"\B(?=[A-Z])", " ", type(self.action).__name__).lower(),
            blueprint=self.action.blueprint if isinstance(self.action, Germinate) else "",
            manner=self.action.manner,
            gate_passed=self.verdict.passed if self.verdict else None,
            fingerprint=digest_of(_parts_of(seed)) if seed else 0,
            error=self.birth.reason if self.birth else "",
        )


def _parts_of(seed: nn.Module) -> State:
    parameters, buffers = named_tensors(seed)
    return {"parameters": dict(parameters), "buffers": dict(buffers)}


def _after(action: Action, state: SlotState, config: SlotConfig) -> SlotState:
    """What the action makes of `state`. Raises as the slot would."""
    if isinstance(action, Germinate):
        return state.germinate(action.blueprint, config.blend if action.blend is None else action.blend)
    if isinstance(action, Advance):
        return state.advance(config)
    tempo = config.tempo if action.tempo is None else action.tempo
    if isinstance(action, SetAlpha):
        return state.retarget(action.target, tempo, config)
    return state.prune(tempo)


@dataclass(frozen=True, slots=True)
class Applied:
    """The gates that a decision asked, with their verdicts, and what single ranks thought of these."""

    verdicts: tuple[tuple[str, GateVerdict], ...] = ()  # (slot id, verdict)
    dissent: tuple[Dissent, ...] = ()


class Growth:
    """The changes of one trainer's model."""

    def __init__(self, model: GrownModel, config: TrainConfig, agreement: Agreement) -> None:
        self._model, self._config, self._agreement = model, config, agreement

    def apply(self, decision: Decision, signals: EpochSignals, agreed: Agreed) -> Applied:
        """Collective: every rank, same order. Prepares, confirms and commits.

        A decision to wait exchanges nothing: a rank that decides otherwise meets the others in the next
        start. Raises as `Agreement.confirm`, and then no slot has changed.
        """
        if not decision.actions:
            return Applied()
        states: dict[str, SlotState] = {}
        prepared = [self.prepare(action, signals, states) for action in decision.actions]
        try:
            self._agreement.confirm(
                GrowthRecord(
                    run_id=run_digest(self._config.run),
                    epoch=signals.epoch,
                    decision=decision.digest(),
                    steps=tuple(each.step() for each in prepared),
                )
            )
        except (LifecycleDivergence, GrowthFailed) as error:
            raise error from next(
                (each.birth.error for each in prepared if each.birth and each.birth.error), None
            )
        for each in prepared:
            if each.goes_ahead:
                self.commit(each)
        asked = tuple((each.action.slot_id, each.verdict) for each in prepared if each.verdict)
        return Applied(asked, self._dissent(asked, signals, agreed))

    def prepare(self, action: Action, signals: EpochSignals, states: dict[str, SlotState]) -> PreparedAction:
        """The action with its seed and its gate's verdict; nothing of it shows in the model.

        `states` has the slots as the decision's actions before this one will leave them, and then as this
        one will. Raises what the slot would raise, here, where none of them has been taken yet.
        """
        slot = self._model.slots[action.slot_id]
        state = states.get(action.slot_id, slot.clock.state)
        birth = verdict = None
        if isinstance(action, Germinate):
            generator = birth_generator(self._config.seed, action.slot_id, state.birth + 1)
            birth = prepare_birth(
                lambda drawn: slot.prepare(action.blueprint, drawn, action.blend), generator
            )
        if isinstance(action, (Germinate, Advance)):
            verdict = self.pass_gate(action.slot_id, signals, birth)
        prepared = PreparedAction(action=action, birth=birth, verdict=verdict)
        if prepared.goes_ahead:
            states[action.slot_id] = _after(action, state, slot.config)
        return prepared

    def pass_gate(self, slot_id: str, signals: EpochSignals, birth: Birth | None = None) -> GateVerdict:
        """Verdict of the gate before the slot's next stage, from agreed numbers; of a `birth`, G0's."""
        view = next(view for view in signals.slots if view.record.slot_id == slot_id)
        if birth is None:
            return gate_for(view, self._config.gates)
        # `prepare` builds nothing else than a known blueprint that keeps the shape.
        built = birth.error is None
        metrics = replace(view.metrics, blueprint_known=built, shape_preserved=built)
        return evaluate_gate(Stage.GERMINATED, metrics, self._config.gates)

    def commit(self, prepared: PreparedAction) -> None:
        """Do what all ranks confirmed."""
        action = prepared.action
        slot = self._model.slots[action.slot_id]
        if isinstance(action, Germinate):
            assert prepared.birth is not None
            assert prepared.birth.seed is not None
            slot.commit(action.blueprint, prepared.birth.seed, action.blend)
        elif isinstance(action, Advance):
            slot.advance()
        elif isinstance(action, SetAlpha):
            slot.retarget(action.target, action.tempo)
        else:
            slot.prune(action.tempo)

    def _dissent(
        self, asked: Sequence[tuple[str, GateVerdict]], signals: EpochSignals, agreed: Agreed
    ) -> tuple[Dissent, ...]:
        """Of each verdict the ranks whose own row, which all have, would have led to another."""
        found = []
        for slot_id, verdict in asked:
            index = next(at for at, view in enumerate(signals.slots) if view.record.slot_id == slot_id)
            view = signals.slots[index]
            if view.record.stage is Stage.DORMANT:
                continue  # a birth is the same everywhere, or it would not have been confirmed
            others = []
            for rank, row in zip(self._agreement.ranks, agreed.own, strict=True):
                own = replace(view, measurement=row.measurements[index])
                if view.improvement is not None and row.test.samples:
                    # Against the agreed accuracy at the stage's start: single ranks' are not kept.
                    own = replace(
                        own, improvement=view.improvement + row.test.accuracy - agreed.test.accuracy
                    )
                if gate_for(own, self._config.gates).passed != verdict.passed:
                    others.append(rank)
            if others:
                found.append(Dissent(slot_id, verdict.gate, verdict.passed, tuple(others)))
                _LOGGER.info("epoch %d: %s", signals.epoch, found[-1])
        return tuple(found)
