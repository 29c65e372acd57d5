"""What a run's callbacks are told, when, on which ranks, and what comes of one that raises."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from esper.errors import AgreementDeadline, LifecycleDivergence
from esper.training import AfterEpoch, Callback, Checkpoints, EpochResult, History, Trainer
from esper.training.checkpoint import load
from pytest_esper_ddp.handle import DDP
from tests.esper.ranks import run_ranks
from tests.integration.miniature import alike, miniature


@dataclass
class Notes(Callback):
    """Each moment with the epochs that were over at it."""

    seen: list[tuple[str, int]] = field(default_factory=list)
    name: str = ""

    def before_run(self, trainer: Trainer) -> None:
        self.seen.append((f"{self.name}before", len(trainer.history.epochs)))

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        assert result is trainer.history.epochs[-1]
        self.seen.append((f"{self.name}epoch", result.epoch))

    def after_run(self, trainer: Trainer) -> None:
        self.seen.append((f"{self.name}after", len(trainer.history.epochs)))


class Stopping(Callback):
    """Only the method that it wants."""

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        if result.epoch == 2:
            trainer.stop()


def _boom(trainer: Trainer, result: EpochResult) -> None:
    if result.epoch == 2:
        raise ZeroDivisionError("in a callback")


def test_each_moment_comes_once_and_in_order() -> None:
    notes = Notes()
    miniature(epochs=2, callbacks=[notes]).run()
    assert notes.seen == [("before", 0), ("epoch", 1), ("epoch", 2), ("after", 2)]


def test_each_moment_is_told_to_all_in_their_order() -> None:
    seen: list[tuple[str, int]] = []
    miniature(epochs=1, callbacks=iter([Notes(seen, "a "), Notes(seen, "b ")])).run()
    assert [name for name, _ in seen] == [
        "a before", "b before", "a epoch", "b epoch", "a after", "b after",
    ]  # fmt: skip


def test_who_writes_one_method_has_the_others_and_a_function_will_do() -> None:
    called: list[int] = []
    note = AfterEpoch(lambda trainer, result: called.append(result.epoch))
    trainer = miniature(epochs=6, callbacks=[Stopping(), note])
    trainer.run()
    assert called == [1, 2, 3]  # asked to stop after the second, it ends with the one that is under way then
    assert trainer.stopping == (0,)


def test_a_run_that_goes_on_begins_where_it_was(tmp_path: Path) -> None:
    miniature(epochs=2, callbacks=[Checkpoints(tmp_path)]).run()
    notes = Notes()
    again = miniature(epochs=3, callbacks=[notes])
    load(tmp_path / "epoch-000002.checkpoint", again)
    again.run()
    assert notes.seen == [("before", 2), ("epoch", 3), ("after", 3)]


def test_what_one_raises_ends_the_run_as_it_is() -> None:
    before, after = Notes(), Notes()
    trainer = miniature(epochs=4, callbacks=[before, AfterEpoch(_boom), after])
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        trainer.run()
    assert before.seen == [("before", 0), ("epoch", 1), ("epoch", 2)]
    assert after.seen == [("before", 0), ("epoch", 1)]
    assert len(trainer.history.epochs) == 2


@pytest.mark.parametrize(
    ("every", "epochs", "saved"), [(1, 2, [1, 2]), (2, 5, [2, 4, 5]), (10, 3, [3]), (3, 3, [3])]
)
def test_checkpoints_are_saved_when_it_is_time_and_at_the_end(
    tmp_path: Path, every: int, epochs: int, saved: list[int]
) -> None:
    store = Checkpoints(tmp_path, keep=9, every=every)
    miniature(epochs=epochs, callbacks=[store]).run()
    assert sorted(path.name for path in store.paths()) == [f"epoch-{one:06d}.checkpoint" for one in saved]


def test_a_run_that_is_stopped_ends_with_a_checkpoint(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, every=10)
    miniature(epochs=6, callbacks=[Stopping(), store]).run()
    assert [path.name for path in store.paths()] == ["epoch-000003.checkpoint"]


@pytest.mark.ddp(2)
def test_one_rank_may_have_others_than_the_rest(ddp: DDP) -> None:
    notes = Notes()
    with miniature(ddp.rank, 2, epochs=2, callbacks=[notes] if ddp.rank == 0 else []) as trainer:
        trainer.run()
        ddp.assert_same(alike(trainer))
    assert len(notes.seen) == (4 if ddp.rank == 0 else 0)


def test_one_that_raises_on_one_rank_is_its_own_error_there_and_a_missing_rank_elsewhere() -> None:
    def body(rank: int) -> History:
        callbacks = [AfterEpoch(_boom)] if rank == 1 else []
        settings: dict[str, Any] = {"agreement": {"deadline": 1.0}, "watchdog": {"on": False}}
        return miniature(rank, 3, epochs=4, callbacks=callbacks, **settings).run()

    errors = [outcome.error for outcome in run_ranks(body, 3)]
    assert str(errors[1]) == "in a callback"
    for error in (errors[0], errors[2]):
        assert isinstance(error, AgreementDeadline)
        assert error.guilty == (1,)


@pytest.mark.ddp(2)
def test_one_that_changes_one_ranks_model_is_found_out(ddp: DDP) -> None:
    def tick(trainer: Trainer, result: EpochResult) -> None:
        if result.epoch == 3:
            trainer.model.tick()

    callbacks = [AfterEpoch(tick)] if ddp.rank == 1 else []
    with miniature(ddp.rank, 2, callbacks=callbacks) as trainer:
        with pytest.raises(LifecycleDivergence, match=r"alpha of r0c0: .* on rank 0; .* on rank 1"):
            trainer.run()
        assert len(trainer.history.epochs) == 3
