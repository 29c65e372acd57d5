"""Checkpoints of several ranks: one writer, everybody's generators, and only what all ranks have."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from esper.errors import CheckpointNotWritten, LifecycleDivergence, NoCheckpoint
from esper.training import AfterEpoch, Checkpoints, EpochResult, Trainer
from esper.training.checkpoint import load
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import EPOCHS, alike, miniature

SIZES = [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)]


@AfterEpoch
def _draw(trainer: Trainer, _: EpochResult) -> None:
    """What a dropout does: each rank from its own numbers."""
    torch.rand(trainer.agreement.rank + 1)


@pytest.mark.parametrize("world_size", SIZES)
def test_going_on_is_as_never_having_stopped(ddp: DDP, world_size: int) -> None:
    store = Checkpoints(ddp.shared_path, keep=EPOCHS)
    torch.manual_seed(100 + ddp.rank)
    with miniature(ddp.rank, world_size, callbacks=[_draw, store]) as whole:
        whole.run()
        end, drawn = alike(whole), torch.get_rng_state()
    dist.barrier()
    for path in (store.paths()[epoch] for epoch in (2, 5, 8)):
        torch.manual_seed(0)
        with miniature(ddp.rank, world_size, callbacks=[_draw]) as again:
            load(path, again)
            again.run()
            ddp.assert_same(alike(again))
            assert repr(alike(again)) == repr(end)
            assert again.model.fingerprint() == whole.model.fingerprint()
        assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.ddp(4)
def test_what_only_some_ranks_have_is_not_gone_on_from(ddp: DDP, tmp_path: Path) -> None:
    # Each rank on a disk of its own, as on nodes without a common one.
    mine = Checkpoints(tmp_path)
    with miniature(ddp.rank, 4, epochs=3, callbacks=[Checkpoints(ddp.shared_path)]) as trainer:
        trainer.run()
    second, third = (ddp.shared_path / f"epoch-{epoch:06d}.checkpoint" for epoch in (2, 3))
    with miniature(ddp.rank, 4) as trainer:
        with pytest.raises(NoCheckpoint):
            mine.resume(trainer)
        if ddp.rank == 1:
            (tmp_path / third.name).write_bytes(third.read_bytes())
        with pytest.raises(LifecycleDivergence) as raised:
            mine.resume(trainer)
        assert raised.value.guilty == (1,)
        assert "epoch-000003.checkpoint: absent on ranks 0, 2, 3; " in str(raised.value)
        assert not trainer.history.epochs
        (tmp_path / second.name).write_bytes(second.read_bytes())
        assert mine.resume(trainer).name == second.name
        trainer.run()
        ddp.assert_same(alike(trainer))


@pytest.mark.ddp(2)
def test_another_world_size_goes_on_and_says_what_changes(ddp: DDP, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "esper")
    store = Checkpoints(ddp.shared_path)
    if ddp.rank == 0:
        miniature(epochs=4, callbacks=[store]).run()
    dist.barrier()
    with miniature(ddp.rank, 2) as trainer:
        store.resume(trainer)
        steps = trainer.state_dict()["steps"]
        trainer.run()
        ddp.assert_same(alike(trainer))
    assert (steps, trainer.state_dict()["steps"], len(trainer.history.epochs)) == (8, 8 + 12, EPOCHS)
    (said,) = [message for message in caplog.messages if "go on" in message]
    assert said == (
        "the checkpoint of epoch 4 is of 1 ranks, and 2 go on: data is sharded anew, a step now takes 2 "
        "batches of the same size, and torch's global generators are seeded anew; all else goes on"
    )


@pytest.mark.ddp(4)
def test_a_writer_that_cannot_write_fails_everywhere(ddp: DDP) -> None:
    (ddp.shared_path / "taken").touch()
    with miniature(ddp.rank, 4, epochs=1, callbacks=[Checkpoints(ddp.shared_path / "taken")]) as trainer:
        expected: type[Exception] = NotADirectoryError if ddp.rank == 0 else CheckpointNotWritten
        with pytest.raises((expected, FileExistsError) if ddp.rank == 0 else expected) as raised:
            trainer.run()
    if ddp.rank:
        assert "was not written: on rank 0 FileExistsError" in str(raised.value)
