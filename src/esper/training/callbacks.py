"""What else happens at a run's moments: a log, a checkpoint, a line on the screen, a test's own look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from esper.training.history import EpochResult

if TYPE_CHECKING:
    from esper.training.trainer import Trainer


class Callback(Protocol):
    """Is called by `Trainer.run`. Who derives from it writes only the methods wanted: each does nothing here.

    Each rank calls what its own trainer was given, one after another, so a callback that the first rank
    alone is given runs there alone. It must not communicate, then: one that does is given to all ranks, at
    the same place among those that do, and communicates at each moment on all of them or on none.

    What a callback raises leaves `run` on that rank as it is. Callbacks after it are not called, at that
    moment or a later one; the other ranks hear nothing of it, and name the rank that is missing when they
    next exchange with it, or have `lockstep` name it.

    Whoever changes the model, its slots or the optimiser does so on all ranks alike: the next exchange
    compares them.
    """

    def before_run(self, trainer: Trainer) -> None:
        """`run` was called, and nothing has been exchanged yet; what was loaded to go on from is there."""
        return

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        """An epoch is over as `result` says, which is the last one of `trainer.history`; its decision has
        been applied. `trainer.stopping` says whether the run ends with it; `trainer.stop()`, on any rank,
        ends it with the next one, in which all ranks hear of that.
        """
        return

    def after_run(self, trainer: Trainer) -> None:
        """The last epoch is over and the ranks were found alike; not called when anything was raised."""
        return


@dataclass(frozen=True, slots=True)
class AfterEpoch(Callback):
    """A function as a callback: `call(trainer, result)` after each epoch."""

    call: Callable[[Trainer, EpochResult], object]

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        """Call it."""
        self.call(trainer, result)
