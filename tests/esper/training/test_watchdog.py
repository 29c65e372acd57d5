"""A trainer on several ranks is watched, unless somebody watches it already."""

import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from esper import lockstep
from esper.errors import ConfigError
from esper.lockstep.rank.intercept import installed
from esper.lockstep.record.reader import LedgerReader
from esper.training import TrainConfig
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import miniature


def watching() -> bool:
    return any(thread.name == "esper.lockstep watchdog" for thread in threading.enumerate())


def folders() -> set[Path]:
    return set(Path("/dev/shm").glob("lockstep.*"))


@pytest.mark.ddp(2, lockstep="off")
def test_a_trainer_is_watched_from_its_making_to_its_end(ddp: DDP) -> None:
    assert not lockstep.watched()
    with miniature(ddp.rank, 2, epochs=2) as trainer:
        assert watching()
        trainer.run()
        found = installed()
        assert found is not None
        ledger = found.recorder.ledger
        reader = LedgerReader(ledger.path.parent, ledger.rank)
        tags = {entry.tag for entry in reader.new() if entry.tag}
        reader.close()
    assert not watching()
    assert not lockstep.watched()
    # What each is for: the reducer's, the exchanges', the audit's.
    assert {"gradients", "agreement", "growth", "audit"} <= tags
    dist.barrier()
    assert not ledger.path.parent.exists()


@pytest.mark.ddp(2, lockstep="off")
def test_who_wants_no_watchdog_has_none(ddp: DDP) -> None:
    with miniature(ddp.rank, 2, epochs=1, watchdog={"on": False}):
        assert not lockstep.watched()
        dist.barrier()  # the other one may be connecting its groups yet


@pytest.mark.ddp(2)
def test_where_somebody_watches_a_trainer_adds_nobody(ddp: DDP) -> None:
    assert lockstep.watched()
    with miniature(ddp.rank, 2, epochs=1):
        assert not watching()
        dist.barrier()  # as above


@pytest.mark.ddp(2, lockstep="off")
def test_a_users_own_watchdog_stays(ddp: DDP) -> None:
    with lockstep.start(patience=60.0) as own:
        with miniature(ddp.rank, 2, epochs=1) as trainer:
            trainer.run()
        assert own.running
    assert not watching()


@pytest.mark.parametrize("patience", [0.5, -1.0, float("nan")])
def test_a_patience_below_two_heartbeats_is_refused_by_its_path(patience: float) -> None:
    with pytest.raises(ConfigError, match=r"watchdog\.patience"):
        TrainConfig.from_dict({"watchdog": {"patience": patience}})
