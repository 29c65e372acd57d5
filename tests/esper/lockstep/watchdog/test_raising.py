"""What `action="raise"` puts on top of torch's and Python's functions, and takes off again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.autograd
from torch.distributed import _functional_collectives as functional
from torch.distributed import distributed_c10d as c10d

from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.watchdog.raising import Raiser
from tests.esper.lockstep.test_once import REPORT

PLACES = (
    (torch.autograd.graph, "_engine_run_backward"),
    (torch.autograd, "_engine_run_backward"),
    (functional.AsyncCollectiveTensor, "trigger_wait"),
    (c10d.Store, "get"),
    (c10d.Store, "wait"),
    (sys, "excepthook"),
    (threading, "excepthook"),
)


def present() -> list[Any]:
    return [getattr(holder, name) for holder, name in PLACES]


@pytest.fixture
def raiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Raiser]:
    for holder, name in PLACES:
        monkeypatch.setattr(holder, name, getattr(holder, name))  # put back afterwards in any case
    ledger = Ledger(tmp_path, 0, 2)
    reader = LedgerReader(tmp_path, 0)
    reader.open()
    yield Raiser(Recorder(ledger), reader)
    reader.close()
    ledger.retire()


def test_all_is_as_it_was(raiser: Raiser) -> None:
    before = present()
    raiser.install()
    assert all(one is not other for one, other in zip(present(), before, strict=True))
    raiser.uninstall()
    assert present() == before


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_nothing_is_raised_in_a_program_that_is_over_for_a_reason_of_its_own(
    kind: type[BaseException], raiser: Raiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[BaseException] = []

    def show(_: object, error: BaseException, __: object) -> None:
        shown.append(error)
        raiser.know(REPORT.diagnoses[0])  # as its thread does meanwhile
        raiser.signal_main()

    monkeypatch.setattr(sys, "excepthook", show)
    raiser.install()
    error = kind("its own")
    sys.excepthook(kind, error, None)
    raiser.signal_main()
    raiser.uninstall()
    assert shown == [error]


def test_what_somebody_else_has_put_on_top_stays_and_ours_below_it_does_nothing(
    raiser: Raiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))
    raiser.install()
    theirs = [lambda *args, below=below: below(*args) for below in present()]
    for (holder, name), on_top in zip(PLACES, theirs, strict=True):
        setattr(holder, name, on_top)
    raiser.uninstall()
    assert present() == theirs

    raised: list[object] = []
    monkeypatch.setattr(raiser._recorder, "raised", raised.append)
    monkeypatch.setattr(raiser._recorder, "victim", raised.append)
    sys.excepthook(RuntimeError, error := RuntimeError(), None)
    with pytest.raises(RuntimeError):
        torch.autograd.backward(torch.ones(2, requires_grad=True) * 2)  # no scalar
    assert seen == [error]
    assert raised == []
