"""Calls from C++: when the backend was done with one, and what that tells of the thread that issued it."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.nn.parallel import DistributedDataParallel

from esper.lockstep.building import CHOICE
from esper.lockstep.rank import compiled
from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Flag, Kind, Time
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.run import natives
from esper.lockstep.run.natives import NativeCalls
from tests.esper.lockstep.conftest import CAPACITY
from tests.esper.lockstep.launching import launch
from tests.esper.lockstep.recording import on_ranks, recorded

built = pytest.mark.skipif(
    not compiled.library_path().is_file(), reason="no compiled kernel: python -m esper.lockstep build"
)


@pytest.fixture
def calls(ledger: Ledger, reader: LedgerReader, monkeypatch: pytest.MonkeyPatch) -> NativeCalls:
    monkeypatch.setattr(natives, "_WOKEN_WITHIN", 0.0)
    assert reader.open()
    return NativeCalls(reader)


def issue(ledger: Ledger, thread: int = 7, flags: int = Flag.WAITED | Flag.NATIVE) -> int:
    return ledger.append(Kind.COLLECTIVE, thread=thread, flags=flags)


def test_a_call_is_under_way_until_the_backend_is_done(ledger: Ledger, calls: NativeCalls) -> None:
    assert not calls.under_way(7, ())
    one, other = issue(ledger), issue(ledger)
    issue(ledger, flags=Flag.WAITED)  # the end of a wait in Python is recorded
    assert calls.under_way(7, ())
    assert calls.under_way(7, {one})
    assert calls.under_way(7, {other})
    assert not calls.under_way(7, {one, other})
    assert not calls.under_way(8, ())
    ledger.stamp(one, Time.DONE)
    assert not calls.under_way(7, {other})
    assert calls.under_way(7, {one})
    ledger.stamp(other, Time.WAIT_ENDED, Flag.FAILED | Flag.REFUSED)
    assert not calls.under_way(7, ())


def test_who_waits_for_a_call_is_woken_a_little_after_it_is_done(
    ledger: Ledger, calls: NativeCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.stamp(issue(ledger), Time.DONE)
    monkeypatch.setattr(natives, "_WOKEN_WITHIN", 60.0)
    assert calls.under_way(7, ())
    monkeypatch.setattr(natives, "_WOKEN_WITHIN", 0.0)
    assert not calls.under_way(7, ())


def test_what_an_earlier_program_left_is_not_under_way(ledger: Ledger, calls: NativeCalls) -> None:
    issue(ledger)
    assert calls.under_way(7, ())
    ledger.append(Kind.BEGIN)
    assert not calls.under_way(7, ())
    issue(ledger)
    assert calls.under_way(7, ())


def test_what_the_ring_has_overwritten_is_forgotten(ledger: Ledger, calls: NativeCalls) -> None:
    issue(ledger)
    for _ in range(CAPACITY - 2):
        issue(ledger, flags=0)
    assert calls.under_way(7, ())
    issue(ledger, flags=0)
    assert not calls.under_way(7, ())


def everybody() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


@built
def test_the_compiled_kernel_records_when_the_backend_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those calls, too, that it hands on to the kernel in Python; which does so of none by itself."""

    def body(rank: int) -> list[list[tuple[str, bool]]]:
        found = []
        for choice in ("auto", "python"):
            monkeypatch.setenv(CHOICE, choice)
            with recorded() as recording:
                group = dist.new_group()
                model = DistributedDataParallel(torch.nn.Linear(2, 1), process_group=group)
                model(torch.ones(1, 2)).sum().backward()
                try:
                    raise ValueError("in flight")
                except ValueError:
                    model(torch.ones(1, 2)).sum().backward()
                (functional.all_reduce(torch.ones(3), "sum", group) + 0).sum()
                dist.barrier()
                seen = [call for call in recording.calls() if call.native]
                assert all(0.0 <= call.times.done - call.issued < 10.0 for call in seen if call.times.done)
                found.append([(call.op, call.times.done != 0.0) for call in seen])
        return found

    for in_cpp, in_python in on_ranks(body):
        # Its first call in a group is the kernel's in Python, and so are those beside an exception.
        assert (in_cpp[0][0], in_cpp[-1][0]) == ("all_gather", "all_reduce")
        assert len(in_cpp) > 6
        assert all(done for _, done in in_cpp)
        assert [op for op, _ in in_python] == [op for op, _ in in_cpp]
        assert not any(done for _, done in in_python)


@built
def test_a_call_may_be_done_after_its_ledger_was_closed() -> None:
    def body(rank: int) -> bool:
        store, x = dist.distributed_c10d._get_default_store(), torch.ones(3)
        if rank == 1:
            store.wait(["closed"])
            dist.all_reduce(x)
            return True
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder), rank, 2)
            interception = Interception(Recorder(ledger))
            interception.install()
            total = functional.all_reduce(x, "sum", everybody())
            interception.uninstall()
            ledger.close()
            del interception, ledger
            gc.collect()
            with recorded():
                store.set("closed", "")
                assert (total + 0).tolist() == [2.0] * 3
            reader = LedgerReader(Path(folder), rank)
            (call,) = [entry for entry in reader.new() if entry.kind is Kind.COLLECTIVE]
            reader.close()
            return call.native and call.times.done >= call.issued

    assert on_ranks(body) == [True, True]


@built
def test_a_call_that_the_ring_has_overwritten_is_done_without_a_word() -> None:
    def body(rank: int) -> list[float]:
        store, x = dist.distributed_c10d._get_default_store(), torch.ones(3)
        with tempfile.TemporaryDirectory() as folder:
            interception = Interception(Recorder(Ledger(Path(folder), rank, 2, CAPACITY)))
            interception.install()
            if rank == 1:
                store.wait(["overwritten"])
            total = functional.all_reduce(x, "sum", everybody())
            works = [dist.all_reduce(torch.ones(1), async_op=True) for _ in range(2 * CAPACITY)]
            store.set("overwritten", "")
            for work in works:
                assert work is not None
                work.wait()
            assert (total + 0).tolist() == [2.0] * 3
            interception.uninstall()
            reader = LedgerReader(Path(folder), rank)
            done = [entry.times.done for entry in reader.new()]
            reader.close()
            return done

    assert on_ranks(body)[0] == [0.0] * (CAPACITY - 1)


@built
def test_a_cycle_with_a_reducers_call_is_proved_when_its_other_calls_are_done(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        from torch.nn.parallel import DistributedDataParallel
        other = dist.new_group()
        layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        model = DistributedDataParallel(layers, bucket_cap_mb=1e-5)
        for step in range(4):
            if rank == 1 and step == 3:
                def hook(gradient):
                    dist.barrier(other)  # hook
                layers[0].weight.register_hook(hook)
            model(x).sum().backward()  # backward
        """,
    )
    diagnosis = outcome.diagnosis
    assert (outcome.status, diagnosis["kind"], diagnosis["guilty"]) == (3, "wait_cycle", [0, 1]), outcome.text
    sites = {at["site"] for at in diagnosis["guilty_at"].values()}
    assert sites == {outcome.at("hook"), outcome.at("backward")}
    assert diagnosis["seconds"] < 1.0


def test_a_thread_that_sleeps_while_its_data_come_is_not_in_a_cycle(tmp_path: Path) -> None:
    """Of its two calls from C++ it waits in the one that all have entered, and goes on to the third."""
    outcome = launch(
        tmp_path,
        """
        import torch.distributed._functional_collectives as functional
        two, three = dist.new_group(), dist.new_group()
        large = functional.all_reduce(torch.ones(1 << 25), "sum", dist.group.WORLD)
        if rank == 0:
            small = functional.all_reduce(x, "sum", two)
            assert large[:1].item() == 2.0
            dist.barrier(three)
            assert small[:1].item() == 2.0
        else:
            dist.barrier(three)
            dist.all_reduce(x, group=two)
        """,
    )
    assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text
