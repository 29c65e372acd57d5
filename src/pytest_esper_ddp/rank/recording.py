"""What records a rank: lockstep's interception, installed before it is forked, its ledger opened after."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from esper.lockstep.errors import InterceptionUnavailable, StartError
from esper.lockstep.frames import INTERNAL
from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.ledger import Ledger
from pytest_esper_ddp.rank.traces import HARNESS
from pytest_esper_ddp.wire.messages import ForkWorld

_LEDGER_RECORDS = 1 << 12
_INSTALLED = pytest.StashKey[Interception]()


def install_early(config: pytest.Config) -> None:
    """In the process that ranks are forked from: each of them would pay 3 ms of a processor for it."""
    with suppress(InterceptionUnavailable, StartError):  # the ranks say it
        config.stash[_INSTALLED] = _installed()


def record(config: pytest.Config, world: ForkWorld, rank: int) -> tuple[Recorder, Interception | None]:
    """Open this rank's ledger, and see its collectives if its world wants that.

    Raises LedgerError, InterceptionUnavailable and StartError.
    """
    place = (world.run_dir, rank, world.world_size, _LEDGER_RECORDS)
    interception = config.stash.get(_INSTALLED, None)
    if not world.lockstep:
        if interception is not None:
            interception.uninstall()
        recorder = _recorder()
        recorder.open(*place)
        return recorder, None
    if interception is None:
        interception = _installed()
    interception.recorder.open(*place)
    interception.attach()
    os.register_at_fork(after_in_child=interception.detach)
    return interception.recorder, interception


def _installed() -> Interception:
    interception = Interception(_recorder())
    interception.install()
    return interception


def _recorder() -> Recorder:
    return Recorder(Ledger.unopened(), INTERNAL + HARNESS)
