"""A rank that compiles while others wait for it: its time, up to a limit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from esper.lockstep.proof.finding import Patience
from esper.lockstep.rank.stacks import STACK_SIGNAL, stack_path
from esper.lockstep.record import ledger as of_ledger
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.run.supervisor import Supervisor
from tests.esper.lockstep.launching import launch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of CLOCK_MONOTONIC, as ledger and supervisor have them."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_compilations_add_up(ledger: Ledger, reader: LedgerReader, clock: list[float]) -> None:
    assert reader.compiled(clock[0]) == (0.0, None)
    for before in (0.0, 3.0):
        ledger.set_compiling(True)
        assert reader.compiled(clock[0]) == (before, clock[0])
        began, clock[0] = clock[0], clock[0] + 1.0
        ledger.set_compiling(True)  # another thread's
        clock[0] += 2.0
        assert reader.compiled(clock[0]) == (before + 3.0, began)
        ledger.set_compiling(False)
        ledger.set_compiling(False)
        clock[0] += 10.0
        assert reader.compiled(clock[0]) == (before + 3.0, None)


def test_whoever_reads_between_two_stores_has_the_seconds_until_then(
    ledger: Ledger, reader: LedgerReader, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    class Stores:
        unpack_from = of_ledger.COMPILED.unpack_from

        @staticmethod
        def pack_into(*stored: Any) -> None:
            of_ledger_compiled.pack_into(*stored)
            seen.append(reader.compiled(clock[0])[0])

    of_ledger_compiled = of_ledger.COMPILED
    monkeypatch.setattr(of_ledger, "COMPILED", Stores)
    for _ in range(2):
        ledger.set_compiling(True)
        clock[0] += 2.0
        ledger.set_compiling(False)
    assert seen == [0.0, 0.0, 2.0, 2.0, 2.0, 4.0]


def test_of_a_lateness_only_that_part_counts_in_which_it_compiled(
    tmp_path: Path, ledger: Ledger, clock: list[float]
) -> None:
    supervisor = Supervisor(tmp_path, [os.getpid()], patience=Patience())
    ledger.set_compiling(True)
    clock[0] += 10.0
    since = clock[0]
    clock[0] += 1.0
    assert supervisor.compiled(0, since) == 1.0  # also before the first look at it
    clock[0] += 1.0
    ledger.set_compiling(False)
    clock[0] += 1.0
    assert supervisor.compiled(0, since) == 2.0
    since = clock[0]
    assert supervisor.compiled(0, since) == 0.0
    clock[0] += 1.0
    ledger.set_compiling(True)
    clock[0] += 3.0
    assert supervisor.compiled(0, since) == 3.0
    assert supervisor.compiled(0, clock[0] - 5.0) == 3.0


def test_who_compiles_is_not_asked_for_its_line_while_the_run_goes_on(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(os, "kill", lambda pid, number: asked.append(number))
    stack_path(tmp_path, 0).touch()
    supervisor = Supervisor(tmp_path, [os.getpid()], patience=Patience())
    ledger.set_compiling(True)
    assert supervisor.line_of(0, within=0.0) == ("compiling", None)
    assert asked == []
    ledger.set_compiling(False)
    assert supervisor.line_of(0, within=0.0) == ("running", None)
    assert asked == [STACK_SIGNAL]


IN_ONE_PROCESS = """
    import sys, time
    from pathlib import Path

    import torch
    from esper.lockstep.rank.intercept import Interception
    from esper.lockstep.rank.recorder import Recorder
    from esper.lockstep.record.ledger import Ledger
    from esper.lockstep.record.reader import LedgerReader

    folder = Path(sys.argv[1])
    interception = Interception(Recorder(Ledger.unopened()))
    interception.install()
    assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]
    interception.recorder.open(folder, 0, 1, 8)
    interception.attach()
    reader = LedgerReader(folder, 0)

    def compiled():
        return reader.compiled(time.monotonic())

    began = time.monotonic()
    import torch._dynamo
    took, (loading, since) = time.monotonic() - began, compiled()
    assert took / 2 < loading < took and since is None, (took, loading, since)
    assert torch._dynamo.__spec__.loader.get_source("torch._dynamo")

    inside = []

    def backend(graph, inputs):
        inside.append(compiled()[1] is not None)
        return graph

    def refusing(graph, inputs):
        inside.append(compiled()[1] is not None)
        raise RuntimeError("refused")

    def run(backend):
        torch._dynamo.reset()
        torch.compile(lambda x: x * 2, backend=backend)(torch.ones(3))
        inside.append(compiled()[1] is not None)

    run(backend)
    try:
        run(refusing)
    except Exception as error:
        inside.append("refused" in str(error) and compiled()[1] is not None)
    interception.uninstall()
    run(backend)
    assert inside == [True, False, True, False, False, False], inside
    assert not hasattr(torch._dynamo.callback.CompilationCallbackHandler.run_end_callbacks, "__wrapped__")
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("esper")]

    # Installed with dynamo loaded; and where a build of torch has nothing of the kind.
    interception = Interception(interception.recorder)
    interception.install()
    run(backend)
    interception.uninstall()
    del torch._dynamo.callback.CompilationCallbackHandler
    interception = Interception(interception.recorder)
    interception.install()
    run(backend)
    assert inside[6:] == [True, False, False, False], inside
"""


def test_what_is_seen_of_compilations_in_one_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(IN_ONE_PROCESS), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


COMPILES = """
from torch._dynamo.backends.common import aot_autograd

def slow(graph, inputs):
    end = time.monotonic() + 1.6
    while time.monotonic() < end:
        time.sleep(0.0 if rank == 0 else 1.6)
    return graph

def at_once(graph, inputs):
    return graph

def double(x):
    return x * 2
"""


def test_who_compiles_longer_than_the_patience_is_not_accused(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            x = torch.compile(double, backend=slow)(x)
        dist.all_reduce(x)
        torch._dynamo.reset()
        if rank == 0:
            x = torch.compile(double, backend=slow)(x)
        dist.all_reduce(x)
        x = x.requires_grad_()
        if rank == 1:
            lazy = aot_autograd(fw_compiler=at_once, bw_compiler=slow)
            torch.compile(lambda x: x.sin().cos().sum(), backend=lazy)(x).backward()
        dist.all_reduce(x.detach())
        dist.destroy_process_group()
    """
    began = time.monotonic()
    outcome = launch(tmp_path, COMPILES + textwrap.dedent(body), patience=1.0)
    assert time.monotonic() - began > 3 * 1.6
    assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text
    assert "; it is compiling\n" in outcome.text


def test_a_compilation_that_does_not_end_is_named(tmp_path: Path) -> None:
    body = """
        def endless(graph, inputs):
            time.sleep(60)

        if rank == 1:
            torch.compile(double, backend=endless)(x)
        dist.all_reduce(x)
    """
    options = ("--compile-patience", "1")
    outcome = launch(tmp_path, COMPILES + textwrap.dedent(body), patience=0.5, options=options)
    assert (outcome.status, outcome.diagnosis["kind"], outcome.diagnosis["guilty"]) == (3, "frozen", [1])
    detail = outcome.diagnosis["guilty_at"]["1"]["detail"]
    told = re.fullmatch(r"has been compiling for (\d+\.\d) s", detail)
    assert told is not None
    assert 1.0 <= float(told[1]) < 20.0  # and the time in which it had no processor
    assert f"<- {detail}" in outcome.diagnosis["message"]
