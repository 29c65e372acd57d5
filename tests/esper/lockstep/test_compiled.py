"""The compiled kernel against the one in Python: the same records, the same errors, and what it needs."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from esper.lockstep import tag
from esper.lockstep.building import CHOICE
from esper.lockstep.errors import KernelNotBuilt, StartError
from esper.lockstep.rank import compiled
from esper.lockstep.rank.recorder import Recorder, is_victim
from esper.lockstep.record.entry import Entry, Times
from tests.esper.lockstep.launching import command, warm_command
from tests.esper.lockstep.recording import on_ranks, recorded

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
built = pytest.mark.skipif(
    not compiled.library_path().is_file(), reason="no compiled kernel: python -m esper.lockstep build"
)


def usual_and_unusual_calls(rank: int, model: DistributedDataParallel) -> None:
    x, parts = torch.ones(4), [torch.ones(2), torch.ones(2)]
    for round_ in range(3):
        dist.all_reduce(x, dist.ReduceOp.MIN)
        dist.all_reduce(torch.ones(round_ + 1, 2, dtype=torch.float64), async_op=True).wait()
        dist.all_reduce(torch.tensor(3))
        with tag(f"round {round_}"):
            dist.broadcast(x, src=round_ % 2)
            dist.all_gather([torch.ones(2), torch.ones(2)], parts[0])
        dist.reduce_scatter(parts[0], [torch.ones(2), torch.ones(2)])
        dist.scatter(parts[0], parts if rank == 1 else None, src=1)
        dist.gather(parts[0], parts if rank == 0 else None, dst=0)
        dist.reduce(x, 1, dist.ReduceOp.MAX)
        dist.all_gather_into_tensor(torch.ones(8), x)
        dist.reduce_scatter_tensor(torch.ones(2), x)
        dist.barrier()
        dist.all_to_all_single(x, x.clone())
        rows = torch.ones(2 * (round_ + 1), 3)
        dist.all_to_all_single(torch.empty_like(rows), rows, async_op=True).wait()
        cut = [2, 1] if rank == 0 else [1, 3]
        dist.all_to_all_single(torch.ones(sum(cut)), torch.ones(sum(cut)), cut, cut)
        dist.all_reduce(torch.ones(3).to_sparse())
        told: list[Any] = [None, None]
        dist.all_gather_object(told, {"round": round_})
        try:
            raise ValueError("in flight")
        except ValueError:
            dist.all_reduce(x)
        model(torch.ones(1, 2)).sum().backward()
    other = dist.new_group([0, 1])
    dist.all_reduce(x, group=other)
    dist.destroy_process_group(other)


def stepped() -> DistributedDataParallel:
    """A model that issues the same in each step to come: after the first backward DDP makes new buckets."""
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
    return model


def plain(entry: Entry) -> Entry:
    """A record without what another run of the same calls need not have again."""
    times = Times(0.0, 0.0, 0.0, 0.0, entry.thread, entry.times.flags)
    group = entry.group.split(" ")[0]  # torch numbers new groups on
    return entry._replace(number=0, group=group, times=times)


def with_kernel(choice: str, rank: int, calls: Any, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    monkeypatch.setenv(CHOICE, choice)
    with recorded() as recording:
        calls(rank)
        return [plain(entry) for entry in recording.calls()]


@built
def test_both_kernels_write_the_same_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rank: int) -> tuple[list[Entry], list[Entry]]:
        model = stepped()

        def calls(rank: int) -> None:
            usual_and_unusual_calls(rank, model)

        return (
            with_kernel("python", rank, calls, monkeypatch),
            with_kernel("auto", rank, calls, monkeypatch),
        )

    for in_python, in_cpp in on_ranks(body):
        assert len(in_python) > 50
        assert in_cpp == in_python


@built
def test_a_usual_call_does_not_reach_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the kernel would only seem to be compiled."""

    def body(rank: int) -> tuple[list[str], list[str]]:
        original, in_python = Recorder.collective, list[str]()

        def noted(self: Recorder, group: Any, op: str, *args: Any, **kwargs: Any) -> int:
            in_python.append(op)
            return original(self, group, op, *args, **kwargs)

        monkeypatch.setattr(Recorder, "collective", noted)
        model = stepped()
        with recorded() as recording:
            x = torch.ones(2)
            for _ in range(5):
                dist.all_reduce(x)
                dist.broadcast(x, 0)
                dist.all_to_all_single(torch.empty_like(x), x)
                model(torch.ones(1, 2)).sum().backward()
            dist.barrier()
            return in_python, [call.op for call in recording.calls()]

    for in_python, seen in on_ranks(body):
        assert in_python == ["all_reduce", "barrier"]  # the group's first, and what the audit is for
        assert seen == ["all_reduce", "broadcast", "all_to_all", "all_reduce"] * 5 + ["barrier"]


@built
def test_a_refused_call_is_given_its_number_back_and_its_error_marked() -> None:
    def body(rank: int) -> tuple[list[tuple[int, bool]], bool, str]:
        with recorded() as recording:
            x = torch.ones(2)
            dist.all_reduce(x)
            with pytest.raises(RuntimeError, match="root") as caught:
                dist.broadcast(x, group_src=7)
            dist.all_reduce(x)
            calls = [(call.sequence, call.waited()) for call in recording.calls()]
            return calls, is_victim(caught.value), str(caught.value)

    for calls, victim, _ in on_ranks(body):
        assert calls[0] == (0, False)
        assert calls[-1] == (1, False)
        assert not victim


@built
def test_it_is_gone_with_its_interception() -> None:
    def body(rank: int) -> list[int]:
        counts = []
        for _ in range(3):
            with recorded() as recording:
                dist.all_reduce(torch.ones(1))
                counts.append(len(recording.calls()))
            dist.all_reduce(torch.ones(1))
        return counts

    assert on_ranks(body) == [[1, 1, 1], [1, 1, 1]]


def test_without_a_compiler_the_reason_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(KernelNotBuilt, match=r"no C\+\+ compiler '/nowhere/c\+\+' \(CXX names another\)"):
        compiled.build()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(KernelNotBuilt, match=r"false ended with 1: nothing; the one in Python"):
        compiled.build()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KernelNotBuilt, match="Not a directory"):
        compiled.build()


def test_the_command_line_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    command = [sys.executable, "-m", "esper.lockstep", "build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the compiled kernel is not built: no C++ compiler '/nowhere/c++'")


def warnings_are_errors() -> None:
    warnings.simplefilter("error", UserWarning)


def test_a_library_that_can_not_be_loaded_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(CHOICE, raising=False)
    compiled.library_path().parent.mkdir()
    compiled.library_path().write_bytes(b"no library")
    with pytest.warns(UserWarning, match="goes on with its kernel in Python: .* can't be loaded"):
        assert compiled.load() is None
    script = tmp_path / "program.py"
    script.write_text("import torch.distributed as dist\ndist.init_process_group('gloo')\ndist.barrier()\n")
    done = warm_command("--nproc", "2", "--", str(script), prepare=warnings_are_errors)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("goes on with its kernel in Python") == 2


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "rust")
    with pytest.raises(StartError, match=r"^ESPER_LOCKSTEP_KERNEL='rust': it is one of auto, python$"):
        compiled.load()
    done = command("--nproc", "2", "--", __file__)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("ESPER_LOCKSTEP_KERNEL='rust': it is one of auto, python") == 1
    assert "Traceback" not in done.stderr
