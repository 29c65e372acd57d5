"""The one loop: start -> train -> evaluate -> agree -> decide -> apply -> tick.

Nothing before the agreement changes lifecycle state, and nothing after it looks at anything local to a rank,
so a failed agreement leaves every slot as it was. The start is an exchange, too: what happened on one rank
alone since the agreement (a tick more, a decision of its own) is found there, before the first gradient.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch.distributed as dist
from torch import Tensor, nn

from esper.control.actions import Decision
from esper.control.heuristic import HeuristicController
from esper.control.signals import EpochSignals
from esper.distributed.agreement import Agreed, Agreement
from esper.distributed.digest import run_digest, stable_digest, text_digest
from esper.distributed.growth import growth_rng_digest
from esper.distributed.loaders import UNKNOWN, Shadow, agreed_batches, check_announced, issued
from esper.distributed.replicate import Replica, Replication
from esper.distributed.rows import AgreementRecord, RowKind
from esper.errors import ConfigError, NotReplicated
from esper.lifecycle.metrics import GradientTrend, MetricSums, SlotMeasurement
from esper.model import GrownModel
from esper.modules import parameters_of
from esper.training.batchnorm import average_statistics, with_statistics
from esper.training.callbacks import Callback
from esper.training.compile import StepCompiler
from esper.training.config import TrainConfig
from esper.training.epoch import GradientWatch, counting_slots, evaluate_on, measure_slots, train_on
from esper.training.growth import Applied, Growth
from esper.training.history import EpochResult, History
from esper.training.optimizer import follow_parameters, make_optimizer
from esper.training.plain import from_plain, to_plain
from esper.training.safeguard import Safeguard
from esper.training.sameness import NOT_REPLICATED, as_shown, common_state, layout_of
from esper.training.snapshot import Saved, capture, random_state, restore, set_random_state
from esper.training.tasks import Batch, Task
from esper.training.watchdog import watch


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
        callbacks: Iterable[Callback] = (),
    ) -> None:
        """Collective: every rank, same order. Makes the agreement's process groups, and has `lockstep` watch
        the ranks, unless somebody does or the config says no.

        Raises ConfigError for a heuristic controller that was made with other gates than the config's.
        """
        if isinstance(controller, HeuristicController) and controller.gates != config.gates:
            # A seed whose gate only the controller sees open would be told to advance for ever.
            raise ConfigError("controller.gates", controller.gates, f"the config's gates, {config.gates}")
        self.model, self.task, self.controller, self.config = model, task, controller, config
        self._watchdog = watch(group, config.watchdog)
        self.agreement = Agreement(group, config.agreement)
        self.optimizer = make_optimizer(model.parameters(), config.optimizer)
        self.safeguard = Safeguard(config.governor)
        self.compiler = StepCompiler(config.compile)
        self.growth = Growth(model, config, self.agreement)
        self.history = History()
        self.callbacks = tuple(callbacks)
        self._group = group
        self._replication = None if group is None else Replication(group)
        self._steps = 0
        self._previous_decision = 0
        self._signals = EpochSignals(0, (), (), ())
        self._trends: dict[str, GradientTrend] = {}
        self._announced: Sequence[tuple[int, int]] = ()
        self._asked_to_stop = False
        self._averaged = False  # BatchNorm's statistics, by the last step
        self.stopping: tuple[int, ...] = ()  # ranks that were asked to end the run early, which all do
        self._digested = (config, config.digest())

    def run(self) -> History:
        """Collective: every rank, same order. Trains up to the configured number of epochs, or until a rank
        was asked to stop, then audits. Calls the callbacks before, after each epoch and after the audit.

        Raises LifecycleDivergence, LoaderMismatch or AgreementDeadline when ranks part, GrowthFailed when a
        seed can't be built, TrainingDiverged when rollbacks do not help, and what a callback raises.
        """
        for _ in self.epochs():
            pass
        return self.history

    def epochs(self) -> Iterator[EpochResult]:
        """Collective: every rank, same order. What `run` does, an epoch at a time: for who has more than one
        run under way. Raises as `run`.
        """
        for callback in self.callbacks:
            callback.before_run(self)
        if not self._announced:
            done = len(self.history.epochs)
            self._announced = self.agree(done, MetricSums(), MetricSums(), ()).next_batches
        for epoch in range(len(self.history.epochs) + 1, self.config.epochs + 1):
            result = self.run_epoch(epoch)
            for callback in self.callbacks:
                callback.after_epoch(self, result)
            yield result
            if self.stopping:
                break
        self.finish()
        for callback in self.callbacks:
            callback.after_run(self)

    def stop(self) -> None:
        """Have `run` end after the epoch that is under way, on every rank; from any thread or signal
        handler, on any rank.
        """
        self._asked_to_stop = True

    def run_epoch(self, epoch: int) -> EpochResult:
        """Collective: every rank, same order. One whole epoch."""
        begun = time.perf_counter()
        self.safeguard.begin(self.model, self.optimizer)
        check_announced(self._announced, epoch, self.config.loaders)
        module = self.wrap()
        self.start(epoch, module)
        train = self.train_epoch(epoch, module)
        if self._replication is not None and isinstance(module, Replica):
            self._replication.keep(module)
        self.average_buffers()
        test, measurements = self.evaluate()
        agreed = self.agree(epoch, train, test, measurements)
        self._announced, self.stopping = agreed.next_batches, agreed.stopping
        if agreed.fell_back:
            self.compiler.follow(agreed.fell_back)
        decision, applied = Decision(), Applied()
        if agreed.panic:
            loss = agreed.train.loss
            self.safeguard.roll_back(self.model, self.optimizer, epoch=epoch, loss=loss)
            self.compiler.forget()
        else:
            decision = self.decide(agreed)
            applied = self.growth.apply(decision, self._signals, agreed)
        self.tick()
        self.safeguard.end(self.model, self.optimizer, agreed.train.loss, panicked=agreed.panic)
        result = EpochResult(
            epoch=epoch,
            loss=agreed.train.loss,
            accuracy=agreed.test.accuracy,
            records=agreed.slots,
            measurements=agreed.measurements,
            decision=decision,
            verdicts=applied.verdicts,
            dissent=applied.dissent,
            fingerprint=agreed.fingerprint,
            panicking=agreed.panicking,
            seconds=time.perf_counter() - begun,
        )
        self.history = History((*self.history.epochs, result), self.model.records())
        every = self.config.agreement.audit_every
        if every and epoch % every == 0 and epoch < self.config.epochs:
            self.audit(f"the audit after epoch {epoch}")
        return result

    def start(self, epoch: int, module: nn.Module | None = None) -> None:
        """Collective: every rank, same order. Nothing has made this rank another since the agreement, and
        `module`, what is about to be trained, averages the gradients of all that learns.

        Raises LifecycleDivergence, NotReplicated or AgreementDeadline.
        """
        if self._group is None:
            return
        layout = layout_of(self.model, module)
        record = self._record(epoch, RowKind.START, text_digest(str(layout)))
        self.agreement.begin(record, lambda: {**self.config.settings(), **layout})
        missing = tuple(name for name, text in layout.items() if text.endswith(NOT_REPLICATED))
        if missing:
            raise NotReplicated(missing)

    def audit(self, where: str) -> None:
        """Collective: every rank, same order. All that ranks have in common is the same, bit for bit.

        Raises LifecycleDivergence with the first part that is not, or AgreementDeadline.
        """
        if self._group is not None:
            self.agreement.audit(common_state(self), where)

    def finish(self) -> None:
        """Collective: every rank, same order. The end of a run is the same on all ranks, too. As `audit`."""
        self.start(len(self.history.epochs) + 1)
        self.audit("the audit at the end")

    def train_epoch(self, epoch: int, module: nn.Module) -> MetricSums:
        """Collective: every rank, same order. One pass over this rank's batches, `module` being the model as
        it is trained.
        """
        follow_parameters(self.optimizer, parameters_of(self.model))
        watch = GradientWatch(self.model, self.config.optimizer.clip)
        batches: Iterator[Batch | Shadow[Batch]] = agreed_batches(
            self._on_device(self.task.train_batches(epoch)),
            self._announced,
            policy=self.config.loaders,
            agreement=self.agreement,
            epoch=epoch,
            sequence=partial(issued, self._group),
        )
        counts = {number for _, number in self._announced}
        if isinstance(module, Replica) and len(counts) == 1:
            batches = with_statistics(batches, min(counts), module)
        sums, steps = train_on(
            module,
            batches,
            self.optimizer,
            clip=self.config.optimizer.clip,
            after_backward=watch,
        )
        # A step that was not taken has brought each rank's statistics back to its own.
        self._averaged = isinstance(module, Replica) and module.took_along and {steps} == counts
        self._steps += steps
        self._trends = watch.trends()
        return sums

    def wrap(self) -> nn.Module:
        """The module to train with this epoch: compiled if so configured, on ranks replicated."""
        module = self.compiler.wrap(self.model)
        return module if self._replication is None else self._replication.of(module)

    def average_buffers(self) -> None:
        """Collective: every rank, same order. Makes BatchNorm's statistics those of all ranks' batches, where
        the last gradients have not done so.
        """
        if self._group is not None and not self._averaged:
            average_statistics(self.model, lambda values: self.agreement.mean_(values, "buffers"))

    def evaluate(self) -> tuple[MetricSums, tuple[SlotMeasurement, ...]]:
        """Sums over this rank's part of the evaluation data, and this rank's measurements, one a slot.

        One pass over the data: without a seed the model is the same up to its slot.
        """
        records = self.model.records()
        counting = counting_slots(records)
        variants: list[Mapping[str, float | Tensor]] = [{}, *[{slot_id: 0.0} for slot_id in counting]]
        batches = self._on_device(self.task.test_batches())
        whole, *without = evaluate_on(self.model, batches, variants)
        accuracies = {slot_id: sums.accuracy for slot_id, sums in zip(counting, without, strict=True)}
        return whole, measure_slots(records, self._trends, accuracies, whole.accuracy)

    def agree(
        self, epoch: int, train: MetricSums, test: MetricSums, measurements: tuple[SlotMeasurement, ...]
    ) -> Agreed:
        """Collective: every rank, same order. Exchanges what this rank is and has measured."""
        batches = 0 if epoch == self.config.epochs else self.task.announce(epoch + 1)
        record = replace(
            self._record(epoch, RowKind.AGREEMENT, self.model.fingerprint()),
            next_batches=UNKNOWN if batches is None else batches,
            panic=self.safeguard.panics(train, test),
            stop=self._asked_to_stop,
            random_bits=self._drawn(epoch),
            train=train,
            test=test,
            measurements=measurements,
        )
        return self.agreement.exchange(record, self.config.settings)

    def _drawn(self, epoch: int) -> int:
        """64 random bits, of the first rank's: what the others have nobody reads."""
        rank = self.agreement.rank
        if rank != self.agreement.ranks[0]:
            return 0
        return stable_digest("draw", self.config.seed, epoch, rank, bits=64)

    def _record(self, epoch: int, kind: RowKind, fingerprint: int) -> AgreementRecord:
        """What has to be the same on every rank at any time."""
        records = self.model.records()
        return AgreementRecord(
            kind=kind,
            run_id=run_digest(self.config.run),
            config_digest=self._config_digest(),
            epoch=epoch,
            steps=self._steps,
            slots=as_shown(records, self.model.alphas),
            growth_rng=growth_rng_digest(self.config.seed, records),
            fingerprint=fingerprint,
            previous_decision=self._previous_decision,
            compile_state=int(self.compiler.state),
        )

    def _config_digest(self) -> int:
        # Of the config that is there now, at 0.4 ms only when that is another one.
        if self._digested[0] is not self.config:
            self._digested = (self.config, self.config.digest())
        return self._digested[1]

    def decide(self, agreed: Agreed) -> Decision:
        """The controller's decision on the agreed numbers."""
        self._signals = EpochSignals.of(
            agreed.epoch,
            [*(result.loss for result in self.history.epochs), agreed.train.loss],
            [*(result.accuracy for result in self.history.epochs), agreed.test.accuracy],
            agreed.slots,
            agreed.measurements,
            agreed.random_bits,
        )
        decision = self.controller.decide(self._signals)
        self._previous_decision = decision.digest()
        return decision

    def tick(self) -> None:
        """One epoch is over for every slot, in forward order."""
        self.model.tick()

    def state_dict(self) -> Saved:
        """All that a run goes on from, as `load_state_dict` takes it back: plain values and tensors."""
        return {
            **capture(self.model, self.optimizer),
            "controller": self.state_of_controller(),
            "governor": self.safeguard.governor.state_dict(),
            "history": to_plain(self.history),
            "steps": self._steps,
            "previous_decision": self._previous_decision,
            "random": random_state(),
        }

    def state_of_controller(self) -> dict[str, object] | None:
        """The controller's own state; None for one that has none."""
        return self.controller.state_dict() if isinstance(self.controller, Resumable) else None

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
        if self._replication is not None:
            self._replication.forget()
        self._trends, self._announced = {}, ()

    def close(self) -> None:
        """Destroy the agreement's groups, let go of the model, and watch no more. Not a collective."""
        self.agreement.close()
        if self._replication is not None:
            self._replication.forget()
        if self._watchdog is not None:
            self._watchdog.stop()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        device = self.model.alphas.device
        return ((inputs.to(device), classes.to(device)) for inputs, classes in batches)
