"""The one loop: train -> evaluate -> measure -> agree -> decide -> apply -> tick.

Nothing before the agreement changes lifecycle state, and nothing after it looks at anything local to a rank,
so a failed agreement leaves every slot as it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch.distributed as dist
from torch import nn

from esper.control.actions import Action, Advance, Decision, Germinate
from esper.control.signals import EpochSignals, gate_for
from esper.distributed.agreement import Agreed, Agreement
from esper.distributed.digest import stable_digest
from esper.distributed.growth import Birth, birth_generator, growth_rng_digest, prepare_birth
from esper.distributed.loaders import require_equal_batches
from esper.distributed.replicate import replicate
from esper.distributed.rows import AgreementRecord, GrowthRecord, GrowthStep
from esper.errors import GrowthFailed, LifecycleDivergence
from esper.lifecycle.gates import GateVerdict, evaluate_gate
from esper.lifecycle.metrics import GradientTrend, MetricSums, SlotMeasurement
from esper.lifecycle.stage import Stage
from esper.model import GrownModel, fingerprint
from esper.training.batchnorm import average_statistics
from esper.training.compile import StepCompiler
from esper.training.config import TrainConfig
from esper.training.epoch import GradientWatch, counting_slots, evaluate_on, measure_slots, train_on
from esper.training.history import EpochResult, History
from esper.training.optimizer import follow_parameters, make_optimizer
from esper.training.plain import from_plain, to_plain
from esper.training.safeguard import Safeguard
from esper.training.snapshot import Saved, capture, random_state, restore, set_random_state
from esper.training.tasks import Batch, Task


class Controller(Protocol):
    """Decides after each epoch, from agreed numbers only."""

    def decide(self, signals: EpochSignals) -> Decision:
        """What to do; the same for the same signals and the same past."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A controller with a state of its own; one without is taken to have none."""

    def state_dict(self) -> dict[str, object]:
        """Plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from them; raises, and stays as it is, for others."""
        ...


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
            action=type(self.action).__name__.lower(),
            blueprint=self.action.blueprint if isinstance(self.action, Germinate) else "",
            gate_passed=self.verdict.passed if self.verdict else None,
            fingerprint=fingerprint(seed) if seed else 0,
            error=self.birth.reason if self.birth else "",
        )


class Trainer:
    """Trains a growing model, on one process (group None) or on every rank of `group` alike.

    The model's weights must be equal on all ranks, which the first exchange checks.
    """

    def __init__(
        self,
        model: GrownModel,
        task: Task,
        controller: Controller,
        config: TrainConfig,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Collective: every rank, same order. Makes the agreement's process groups."""
        self.model, self.task, self.controller, self.config = model, task, controller, config
        self.agreement = Agreement(group, config.agreement)
        self.optimizer = make_optimizer(model.parameters(), config.optimizer)
        self.safeguard = Safeguard(config.governor)
        self.compiler = StepCompiler(config.compile)
        self.history = History()
        self._group = group
        self._steps = 0
        self._previous_decision = 0
        self._signals = EpochSignals(0, (), (), ())
        self._trends: dict[str, GradientTrend] = {}
        self._announced: Sequence[tuple[int, int]] = ()

    def run(self) -> History:
        """Collective: every rank, same order. Trains up to the configured number of epochs.

        Raises LifecycleDivergence, LoaderMismatch or AgreementDeadline when ranks part, GrowthFailed when a
        seed can't be built, TrainingDiverged when rollbacks do not help.
        """
        if not self._announced:
            done = len(self.history.epochs)
            self._announced = self.agree(done, MetricSums(), MetricSums(), ()).next_batches
        for epoch in range(len(self.history.epochs) + 1, self.config.epochs + 1):
            self.run_epoch(epoch)
        return self.history

    def run_epoch(self, epoch: int) -> EpochResult:
        """Collective: every rank, same order. One whole epoch."""
        begun = time.perf_counter()
        self.safeguard.begin(self.model, self.optimizer)
        require_equal_batches(self._announced, epoch)
        train = self.train_epoch(epoch)
        self.average_buffers()
        test = self.evaluate()
        measurements = self.measure(test.accuracy)
        agreed = self.agree(epoch, train, test, measurements)
        self._announced = agreed.next_batches
        decision = Decision()
        verdicts: tuple[tuple[str, GateVerdict], ...] = ()
        if agreed.panic:
            loss = agreed.train.loss
            self.safeguard.roll_back(self.model, self.optimizer, epoch=epoch, loss=loss)
            self.compiler.forget()
        else:
            decision = self.decide(agreed)
            verdicts = self.apply(decision)
        self.tick()
        self.safeguard.end(self.model, self.optimizer, agreed.train.loss, panicked=agreed.panic)
        result = EpochResult(
            epoch=epoch,
            loss=agreed.train.loss,
            accuracy=agreed.test.accuracy,
            records=agreed.records[0].slots,
            measurements=agreed.measurements,
            decision=decision,
            verdicts=verdicts,
            fingerprint=agreed.records[0].fingerprint,
            panicking=agreed.panicking,
            seconds=time.perf_counter() - begun,
        )
        self.history = History((*self.history.epochs, result), self.model.records())
        return result

    def train_epoch(self, epoch: int) -> MetricSums:
        """Collective: every rank, same order. One pass over this rank's batches."""
        follow_parameters(self.optimizer, self.model.parameters())
        watch = GradientWatch(self.model, self.config.optimizer.clip)
        sums, steps = train_on(
            self.wrap(),
            self._on_device(self.task.train_batches(epoch)),
            self.optimizer,
            clip=self.config.optimizer.clip,
            after_backward=watch,
        )
        self._steps += steps
        self._trends = watch.trends()
        return sums

    def wrap(self) -> nn.Module:
        """The module to train with: compiled if so configured, on ranks replicated anew for this epoch."""
        module = self.compiler.wrap(self.model)
        return module if self._group is None else replicate(module, self._group)

    def average_buffers(self) -> None:
        """Collective: every rank, same order. Makes BatchNorm's statistics those of all ranks' batches."""
        average_statistics(self.model, lambda values: self.agreement.mean_(values, "buffers"))

    def evaluate(self) -> MetricSums:
        """Sums over this rank's part of the evaluation data."""
        (sums,) = evaluate_on(self.model, self._on_device(self.task.test_batches()))
        return sums

    def measure(self, accuracy: float) -> tuple[SlotMeasurement, ...]:
        """This rank's measurements, one a slot; `accuracy` is that of the whole model, in points."""
        records = self.model.records()
        counting = counting_slots(records)
        without: list[MetricSums] = []
        if counting:
            variants = [{slot_id: 0.0} for slot_id in counting]
            without = evaluate_on(self.model, self._on_device(self.task.test_batches()), variants)
        accuracies = {slot_id: sums.accuracy for slot_id, sums in zip(counting, without, strict=True)}
        return measure_slots(records, self._trends, accuracies, accuracy)

    def agree(
        self, epoch: int, train: MetricSums, test: MetricSums, measurements: tuple[SlotMeasurement, ...]
    ) -> Agreed:
        """Collective: every rank, same order. Exchanges what this rank is and has measured."""
        records = self.model.records()
        is_last = epoch == self.config.epochs
        return self.agreement.exchange(
            AgreementRecord(
                run_id=stable_digest("run", self.config.run),
                config_digest=self.config.digest(),
                epoch=epoch,
                steps=self._steps,
                slots=records,
                growth_rng=growth_rng_digest(self.config.seed, records),
                fingerprint=self.model.fingerprint(),
                previous_decision=self._previous_decision,
                next_batches=0 if is_last else self.task.announce(epoch + 1),
                compile_state=int(self.compiler.state),
                panic=self.safeguard.panics(train, test),
                random_bits=stable_digest("draw", self.config.seed, epoch, self.agreement.rank, bits=64),
                train=train,
                test=test,
                measurements=measurements,
            )
        )

    def decide(self, agreed: Agreed) -> Decision:
        """The controller's decision on the agreed numbers."""
        self._signals = EpochSignals.of(
            agreed.records[0].epoch,
            [*(result.loss for result in self.history.epochs), agreed.train.loss],
            [*(result.accuracy for result in self.history.epochs), agreed.test.accuracy],
            agreed.records[0].slots,
            agreed.measurements,
        )
        decision = self.controller.decide(self._signals)
        self._previous_decision = decision.digest()
        return decision

    def apply(self, decision: Decision) -> tuple[tuple[str, GateVerdict], ...]:
        """Collective: every rank, same order. Prepares, confirms and commits; (slot id, verdict) of each gate
        asked.

        A decision to wait exchanges nothing. Raises as `Agreement.confirm`, and then no slot has changed.
        """
        if not decision.actions:
            return ()
        prepared = [self.prepare(action) for action in decision.actions]
        try:
            self.agreement.confirm(
                GrowthRecord(
                    run_id=stable_digest("run", self.config.run),
                    epoch=self._signals.epoch,
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
                self.apply_action(each)
        return tuple((each.action.slot_id, each.verdict) for each in prepared if each.verdict)

    def prepare(self, action: Action) -> PreparedAction:
        """The action with its seed and its gate's verdict; nothing of it shows in the model.

        Raises what the slot would raise, here, where no other action of the decision has been taken yet.
        """
        slot = self.model.slots[action.slot_id]
        if isinstance(action, Advance):
            prepared = PreparedAction(action=action, verdict=self.pass_gate(action.slot_id))
            if prepared.goes_ahead:
                slot.clock.state.advance(slot.config)
            return prepared
        if not isinstance(action, Germinate):
            slot.clock.state.prune(slot.config.tempo)
            return PreparedAction(action=action)
        generator = birth_generator(self.config.seed, action.slot_id, slot.record().birth + 1)
        birth = prepare_birth(lambda drawn: slot.prepare(action.blueprint, drawn), generator)
        return PreparedAction(action=action, birth=birth, verdict=self.pass_gate(action.slot_id, birth))

    def pass_gate(self, slot_id: str, birth: Birth | None = None) -> GateVerdict:
        """Verdict of the gate before the slot's next stage, from agreed numbers; of a `birth`, G0's."""
        view = next(view for view in self._signals.slots if view.record.slot_id == slot_id)
        if birth is None:
            return gate_for(view, self.config.gates)
        # `prepare` builds nothing else than a known blueprint that keeps the shape.
        built = birth.error is None
        metrics = replace(view.metrics, blueprint_known=built, shape_preserved=built)
        return evaluate_gate(Stage.GERMINATED, metrics, self.config.gates)

    def apply_action(self, prepared: PreparedAction) -> None:
        """Do what all ranks confirmed."""
        slot = self.model.slots[prepared.action.slot_id]
        if isinstance(prepared.action, Germinate):
            assert prepared.birth is not None
            assert prepared.birth.seed is not None
            slot.commit(prepared.action.blueprint, prepared.birth.seed)
        elif isinstance(prepared.action, Advance):
            slot.advance()
        else:
            slot.prune()

    def tick(self) -> None:
        """One epoch is over for every slot, in forward order."""
        self.model.tick()

    def state_dict(self) -> Saved:
        """All that a run goes on from, as `load_state_dict` takes it back: plain values and tensors."""
        controller = self.controller
        return {
            **capture(self.model, self.optimizer),
            "controller": controller.state_dict() if isinstance(controller, Resumable) else None,
            "governor": self.safeguard.governor.state_dict(),
            "history": to_plain(self.history),
            "steps": self._steps,
            "previous_decision": self._previous_decision,
            "random": random_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave. Not atomic: `esper.training.checkpoint` makes it so."""
        restore(self.model, self.optimizer, saved)
        if isinstance(self.controller, Resumable):
            self.controller.load_state_dict(saved["controller"])
        self.safeguard.governor.load_state_dict(saved["governor"])
        self.history = from_plain(History, saved["history"], "history")
        self._steps, self._previous_decision = int(saved["steps"]), int(saved["previous_decision"])
        set_random_state(saved["random"])
        self.compiler.forget()
        self.safeguard.forget()
        self._trends, self._announced = {}, ()

    def close(self) -> None:
        """Destroy the agreement's groups. Not a collective."""
        self.agreement.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        device = next(self.model.parameters()).device
        return ((inputs.to(device), classes.to(device)) for inputs, classes in batches)
