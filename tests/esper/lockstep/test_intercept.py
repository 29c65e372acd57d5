"""What the interception sees of real ranks, what it changes, and that it leaves nothing behind."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._C._distributed_c10d import FileStore
from torch.distributed import distributed_c10d as c10d
from torch.nn.parallel import DistributedDataParallel

from esper.lockstep import awaiting, tag
from esper.lockstep.building import CHOICE
from esper.lockstep.rank import compiled
from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.interposer import Call, Proceed
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Entry, Flag, Kind
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader
from tests.esper.lockstep.recording import on_ranks, recorded

# What torch warns of in a forked rank is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True, params=["auto", "python"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with the compiled kernel, where it is built, and with the one in Python."""
    if request.param == "auto" and not compiled.library_path().is_file():
        pytest.skip("no compiled kernel: python -m esper.lockstep build")
    monkeypatch.setenv(CHOICE, request.param)


def line_of(function: Callable[..., Any], mark: str) -> int:
    lines, first = inspect.getsourcelines(function)
    (number,) = [number for number, line in enumerate(lines, first) if line.rstrip().endswith(f"# {mark}")]
    return number


def every_call(rank: int) -> None:
    x, two = torch.ones(4), [torch.ones(4), torch.ones(4)]
    dist.all_reduce(x, dist.ReduceOp.MAX)
    dist.broadcast(x, 1)
    dist.reduce(x, 1)
    dist.all_gather(two, x)
    dist.all_gather_into_tensor(torch.ones(8), x)
    dist.gather(x, two if rank == 0 else None, dst=0)
    dist.scatter(x, two if rank == 1 else None, src=1)
    dist.reduce_scatter(x, two)
    dist.reduce_scatter_tensor(x, torch.ones(8))
    dist.all_to_all_single(x, x.clone())
    dist.barrier()
    dist.monitored_barrier()
    dist.all_reduce_coalesced(two)


def test_every_operation_is_seen_alike_on_both_ranks() -> None:
    def body(rank: int) -> list[tuple[Any, ...]]:
        with recorded() as recording:
            every_call(rank)
            calls = recording.calls()
        assert all(call.waited() is (call.times.wait_ended == 0.0) for call in calls)
        assert {call.site.file for call in calls if call.site} == {__file__}
        return [
            (one.sequence, one.op, one.reduce_op, one.dtype, one.root, one.elements, one.digest)
            for one in calls
        ]

    one, other = on_ranks(body)
    assert one == other
    assert [call[1:6] for call in one] == [
        ("all_reduce", "MAX", "float32", -1, 4),
        ("broadcast", None, "float32", 1, 4),
        ("reduce", "SUM", "float32", 1, 4),
        ("all_gather", None, "float32", -1, 4),
        ("all_gather", None, "float32", -1, 4),
        ("gather", None, "float32", 0, 4),
        ("scatter", None, "float32", 1, 4),
        ("reduce_scatter", "SUM", "float32", -1, 8),
        ("reduce_scatter", "SUM", "float32", -1, 8),
        ("all_to_all", None, "float32", -1, 0),
        ("barrier", None, None, -1, 0),
        ("monitored_barrier", None, None, -1, 0),
        ("all_reduce_coalesced", "SUM", "float32", -1, 8),
    ]
    assert [call[0] for call in one] == list(range(len(one)))


def test_a_call_is_where_the_program_made_it_and_under_its_tag() -> None:
    def body(rank: int) -> list[Entry]:
        with recorded() as recording:
            with tag("outer"), tag("gate:r0c1"):
                dist.all_reduce(torch.ones(2))  # here
            with tag("outer"):
                dist.all_gather_object([None, None], rank)  # and here
            return recording.calls()

    for calls in on_ranks(body):
        assert [call.tag for call in calls] == ["gate:r0c1", "outer", "outer"]
        here, there = line_of(body, "here"), line_of(body, "and here")
        assert [call.site.line for call in calls if call.site] == [here, there, there]
        assert {call.site.file for call in calls if call.site} == {__file__}


def test_groups_have_one_name_on_all_ranks_and_a_new_one_when_made_again(tmp_path: Path) -> None:
    def body(rank: int) -> list[tuple[str, int]]:
        with recorded() as recording:
            pair = dist.new_group([0, 1])
            dist.barrier()
            dist.barrier(group=pair)
            dist.destroy_process_group(pair)
            with pytest.raises(ValueError, match="Invalid process group"):
                dist.destroy_process_group(pair)
            dist.destroy_process_group(c10d.GroupMember.NON_GROUP_MEMBER)  # type: ignore[arg-type]
            dist.destroy_process_group()
            store = FileStore(str(tmp_path / "store"), 2)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
            dist.barrier()
            return [
                (entry.group, int(entry.kind))
                for entry in recording.entries()
                if entry.kind in (Kind.COLLECTIVE, Kind.DESTROY) and entry.op != "new_group"
            ]

    one, other = on_ranks(body)
    assert one == other
    called, destroyed = int(Kind.COLLECTIVE), int(Kind.DESTROY)
    groups = [name for name, kind in one if kind == called]
    assert groups == ["default", one[1][0], "default (2)"]
    assert one.count((groups[1], destroyed)) == 1
    assert one.count(("default", destroyed)) == 1


def test_sends_and_receives_are_numbered_apart_and_carry_their_tag() -> None:
    def body(rank: int) -> list[Entry]:
        with recorded() as recording:
            x = torch.ones(1)
            if rank == 0:
                dist.send(x, 1, tag=7)
                dist.send(x, 1)
            else:
                dist.recv(x, 0, tag=7)
                dist.recv(x)
            dist.barrier()
            return recording.calls()

    sent, received = on_ranks(body)
    assert [(one.group, one.sequence, one.op, one.peer, one.detail) for one in sent[:2]] == [
        ("p2p:default", 0, "send", 1, {"tag": 7}),
        ("p2p:default", 1, "send", 1, {}),
    ]
    assert [(one.op, one.peer, one.detail) for one in received[:2]] == [
        ("recv", 0, {"tag": 7}),
        ("recv", -1, {}),
    ]
    assert sent[2].sequence == received[2].sequence == 0


def test_the_reducers_call_is_at_the_line_of_the_backward() -> None:
    def body(rank: int) -> tuple[list[int], bool, bool]:
        with recorded() as recording:
            model = DistributedDataParallel(torch.nn.Linear(3, 1))
            recording.calls()
            model(torch.ones(2, 3)).sum().backward()  # backward
            calls = [call for call in recording.calls() if call.op == "all_reduce"]
            sites = [call.site.line for call in calls if call.site]
            return sites, all(call.native for call in calls), all(call.waited() for call in calls)

    for sites, native, waited in on_ranks(body):
        assert set(sites) == {line_of(body, "backward")}
        assert native
        assert waited


# A backward inside so many others runs in a thread of autograd's own, as all that is on a GPU does.
NESTED = 60


class Deeper(torch.autograd.Function):
    """Runs `innermost` inside `depth` backwards."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, innermost: Callable[[], None], depth: int) -> torch.Tensor:
        ctx.innermost, ctx.depth = innermost, depth
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        with torch.enable_grad():
            if ctx.depth:
                Deeper.begin(ctx.innermost, ctx.depth - 1)
            else:
                ctx.innermost()
        return gradient, None, None

    @classmethod
    def begin(cls, innermost: Callable[[], None], depth: int) -> None:
        cls.apply(torch.ones(1, requires_grad=True), innermost, depth).sum().backward()  # type: ignore[no-untyped-call]


def nested(rank: int) -> tuple[list[Entry], list[float]]:
    model = DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))

    def step() -> None:
        model(torch.full((1, 2), float(rank))).sum().backward()  # inner step

    with recorded() as recording:
        Deeper.begin(step, NESTED)
        gradient = model.module.weight.grad
        assert gradient is not None
        calls = recording.calls()
        assert all(call.thread == threading.get_native_id() for call in calls)
        recording.interception.interposer = Skip("all_reduce")
        Deeper.begin(step, NESTED)
        recording.interception.interposer = None
        dist.barrier()
        return calls, gradient.flatten().tolist()


def test_a_call_from_a_thread_of_autograds_is_the_waiting_ones() -> None:
    # Such a backward ends a forked process with a segmentation fault where its parent has run any before, as
    # tests of models have.
    code = (
        "import pickle, sys\n"
        f"from {__name__} import nested, on_ranks\n"
        "sys.stdout.buffer.write(pickle.dumps(on_ranks(nested)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    for rank, (calls, gradient) in enumerate(pickle.loads(done.stdout)):
        (call,) = [call for call in calls if call.op == "all_reduce"]
        assert call.site is not None
        assert call.site.line == line_of(nested, "inner step")
        assert (call.reduce_op, call.native, call.waited()) == ("SUM", True, True)
        # Divided by the world's size beforehand, and summed with nobody.
        assert gradient == [(0.5 + rank) / 2] * 2


def test_functional_collectives_are_seen() -> None:
    def body(rank: int) -> list[tuple[str, bool]]:
        with recorded() as recording:
            total = functional.all_reduce(torch.ones(3), "sum", [0, 1])
            assert (total + 0).tolist() == [2.0, 2.0, 2.0]
            return [(call.op, call.native) for call in recording.calls()]

    assert on_ranks(body) == [[("all_reduce", True)]] * 2


def test_a_wait_is_seen_from_its_begin_to_its_end() -> None:
    def body(rank: int) -> None:
        with recorded() as recording:
            work = dist.all_reduce(torch.ones(1), async_op=True)
            (call,) = recording.calls()
            assert not call.waited()
            assert work is not None
            work.wait()
            times = recording.wait_of(call.number)
            assert call.issued <= times.wait_begun <= times.wait_ended
            assert times.flags == 0

    on_ranks(body)


def test_a_wait_that_timed_out_is_open_until_one_succeeds() -> None:
    def body(rank: int) -> None:
        with recorded() as recording:
            pair = dist.new_group([0, 1])
            recording.entries()
            if rank == 0:
                work = dist.barrier(async_op=True)
                (call,) = recording.calls()
                with pytest.raises(RuntimeError, match=r"[Tt]ime"):
                    work.wait(timedelta(milliseconds=50))
                flags = recording.wait_of(call.number).flags
                assert flags == Flag.FAILED | Flag.POLLED
                dist.barrier(group=pair)
                work.wait()
                times = recording.wait_of(call.number)
                assert times.flags == 0
                assert times.wait_ended > times.wait_begun
            else:
                dist.barrier(group=pair)
                dist.barrier()

    on_ranks(body)


def test_a_committed_wait_is_one_wait_however_it_polls() -> None:
    def body(rank: int) -> None:
        with recorded() as recording:
            pair = dist.new_group([0, 1])
            recording.entries()
            if rank == 0:
                work = dist.barrier(async_op=True)
                (call,) = recording.calls()
                with awaiting(work):
                    with pytest.raises(RuntimeError, match=r"[Tt]ime"):
                        work.wait(timedelta(milliseconds=50))
                    inside = recording.wait_of(call.number)
                    assert inside.wait_begun
                    assert (inside.wait_ended, inside.flags) == (0.0, 0)
                    dist.barrier(group=pair)
                    work.wait(timedelta(seconds=5))
                assert recording.wait_of(call.number).wait_ended
            else:
                dist.barrier(group=pair)
                dist.barrier()

    on_ranks(body)


def test_a_wait_through_a_future_is_a_wait() -> None:
    def body(rank: int) -> None:
        with recorded() as recording:
            work = dist.all_reduce(torch.ones(1), async_op=True)
            assert work is not None
            following = work.get_future().then(lambda future: future.value())
            (call,) = recording.calls()
            assert not call.waited()
            following.wait()
            times = recording.wait_of(call.number)
            assert call.issued <= times.wait_begun <= times.wait_ended
            plain: torch.futures.Future[int] = torch.futures.Future()
            plain.set_result(3)
            assert plain.wait() == 3

    on_ranks(body)


def test_a_wait_for_several_futures_is_a_wait_for_each() -> None:
    def body(rank: int) -> None:
        with recorded() as recording:
            works = [dist.all_reduce(torch.ones(1), async_op=True) for _ in range(2)]
            first, second = recording.calls()
            together = torch.futures.collect_all([work.get_future() for work in works if work is not None])
            torch.futures.wait_all([together.then(lambda all_of_them: 1)])
            for call in (first, second):
                times = recording.wait_of(call.number)
                assert call.issued <= times.wait_begun <= times.wait_ended

    on_ranks(body)


def test_a_program_that_asks_whether_a_work_is_done_waits_for_it() -> None:
    def body(rank: int) -> None:
        with recorded() as recording:
            pair = dist.new_group([0, 1])
            recording.entries()
            if rank == 0:
                work = dist.barrier(async_op=True)
                assert work is not None
                (call,) = recording.calls()
                assert not work.is_completed()
                assert recording.wait_of(call.number).flags == Flag.FAILED | Flag.POLLED
                dist.barrier(group=pair)
                while not work.is_completed():
                    pass
                assert recording.wait_of(call.number).flags == 0
                late = dist.barrier(async_op=True, group=pair)
                assert late is not None
                (call,) = recording.calls()[-1:]
                assert not late.is_completed()
                dist.send(torch.ones(1), 1)
                late.wait()
                assert recording.wait_of(call.number).flags == 0
            else:
                dist.barrier(group=pair)
                dist.barrier()
                dist.recv(torch.ones(1), 0)
                dist.barrier(group=pair)

    on_ranks(body)


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (torch.ones(3, dtype=torch.float64), "float64"),
        (torch.ones(3, device="meta"), "float32 on meta"),
        (torch.ones(3).to_sparse(), "float32 sparse_coo"),
    ],
    ids=["dense", "meta", "sparse"],
)
def test_what_can_not_meet_a_dense_tensor_says_so(tensor: torch.Tensor, dtype: str) -> None:
    def body(rank: int) -> str | None:
        with recorded() as recording:
            dist.all_reduce(tensor)
            (call,) = recording.calls()
            return call.dtype

    assert on_ranks(body) == [dtype, dtype]


def test_an_exception_whose_text_raises_harms_no_call_made_while_it_passes() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise KeyError("lost")

    def body(rank: int) -> str:
        with recorded() as recording:
            try:
                raise Mute
            except Mute:
                dist.all_reduce(torch.ones(1))
            (call,) = recording.calls()
            return str(call.detail["error"])

    assert on_ranks(body) == ["Mute: (no text: KeyError)"] * 2


def test_works_that_nobody_waits_on_are_let_go() -> None:
    def body(rank: int) -> int:
        with recorded() as recording:
            for _ in range(200):
                work = dist.all_reduce(torch.ones(1), async_op=True)
                assert work is not None
                work.get_future().wait()
            return len(recording.interception.works.known)

    assert all(kept <= 64 for kept in on_ranks(body))


def test_two_threads_of_one_group_keep_their_numbers_in_the_order_of_their_calls() -> None:
    def body(rank: int) -> list[int]:
        with recorded() as recording:
            start = threading.Barrier(2)

            def work() -> None:
                start.wait()
                for _ in range(50):
                    dist.all_reduce(torch.ones(1))

            with ThreadPoolExecutor(2) as pool:
                for done in [pool.submit(work) for _ in range(2)]:
                    done.result()
            return [call.sequence for call in recording.calls()]

    for numbers in on_ranks(body):
        assert numbers == list(range(100))


def test_uninstalled_it_leaves_torch_as_it_was() -> None:
    def body(rank: int) -> int:
        places: list[tuple[Any, str]] = [
            (dist.Work, "wait"),
            (dist.Work, "get_future"),
            (torch._C.Future, "wait"),
            (torch._C.Future, "then"),
            (dist, "destroy_process_group"),
            (c10d, "destroy_process_group"),
            (dist, "new_group"),
            (c10d, "_new_group_with_tag"),
            (os, "_exit"),
            (threading, "_start_new_thread"),
            (DistributedDataParallel, "__init__"),
            (DistributedDataParallel, "forward"),
            (DistributedDataParallel, "_pre_forward"),
            (torch.nn.Module, "__call__"),
        ]
        before = [vars(holder)[name] for holder, name in places if name in vars(holder)]
        with recorded() as recording:
            dist.barrier()
            seen = len(recording.calls())
        after = [vars(holder)[name] for holder, name in places if name in vars(holder)]
        assert all(one is other for one, other in zip(before, after, strict=True))
        with recorded() as again:
            pass
        dist.barrier()
        assert not again.interception.kernels.installed
        with tag("off"):
            dist.all_reduce(torch.ones(1))
        return seen

    assert on_ranks(body) == [1, 1]


def test_what_is_followed_looks_as_torch_made_it() -> None:
    def looks() -> list[tuple[str, str, str | None]]:
        followed: list[Any] = [
            DistributedDataParallel.__init__,
            DistributedDataParallel.forward,
            DistributedDataParallel,
            dist.init_process_group,
            dist.destroy_process_group,
            dist.new_group,
        ]
        return [(str(inspect.signature(one)), one.__name__, one.__doc__) for one in followed]

    def body(rank: int) -> list[object]:
        before = looks()
        with recorded():
            return [pair for pair in zip(before, looks(), strict=True) if pair[0] != pair[1]]

    assert on_ranks(body) == [[], []]


def test_an_uninstalled_interception_writes_nothing() -> None:
    def body(rank: int) -> int:
        with recorded() as recording:
            dist.barrier()
            recording.entries()
            recording.interception.uninstall()
            dist.all_reduce(torch.ones(1))
            work = dist.barrier(async_op=True)
            assert work is not None
            work.wait()
            return len(recording.entries())

    assert on_ranks(body) == [0, 0]


def test_a_detached_child_writes_nothing() -> None:
    def body(rank: int) -> list[Kind]:
        with recorded() as recording:
            dist.barrier()
            recording.entries()
            child = os.fork()
            if child == 0:
                recording.interception.detach()
                with tag("child"):
                    recording.interception.recorder.over()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert status == 0
            return [entry.kind for entry in recording.entries()]

    assert on_ranks(body) == [[], []]


class Skip:
    """Leaves out the calls of one operation, and counts what it was asked."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.asked: list[Call] = []

    def around(self, call: Call, proceed: Proceed) -> Any:
        self.asked.append(call)
        return call.left_out() if call.op == self.op else proceed(*call.args)


def test_installed_before_its_rank_is_known_it_passes_all_on_until_it_is_attached(tmp_path: Path) -> None:
    interception = Interception(Recorder(Ledger.unopened()))
    interception.install()
    try:
        outcomes = on_ranks(lambda rank: _attached(interception, tmp_path, rank))
    finally:
        interception.uninstall()
    for before, after, ops, threads in outcomes:
        assert (before, after) == (3.0, 6.0)
        assert ops == [("all_reduce", 0), ("barrier", 1)]
        assert threads == {True}  # not the id of the one that was forked
    assert list(tmp_path.iterdir()) != []


def _attached(interception: Interception, folder: Path, rank: int) -> tuple[float, float, Any, set[bool]]:
    one = torch.full((1,), float(rank + 1))
    dist.all_reduce(one)
    before = one.item()
    assert list(folder.glob(f"rank{rank}.*")) == []
    interception.recorder.open(folder, rank, dist.get_world_size(), 1 << 6)
    interception.attach()
    interception.begin("a test")
    dist.all_reduce(one)
    dist.barrier()
    reader = LedgerReader(folder, rank)
    calls = [entry for entry in reader.new() if entry.kind is Kind.COLLECTIVE]
    reader.close()
    threads = {entry.thread == threading.get_native_id() for entry in calls}
    return before, one.item(), [(entry.op, entry.sequence) for entry in calls], threads


def test_a_call_that_is_left_out_is_done_and_has_done_nothing() -> None:
    def body(rank: int) -> None:
        with recorded() as recording:
            skip = recording.interception.interposer = Skip("all_reduce")
            x = torch.full((2,), float(rank))
            with tag("vote"):
                assert dist.all_reduce(x) is None
            work = dist.all_reduce(x, async_op=True)
            assert work is not None
            assert work.wait()
            assert work.is_completed()
            assert x.tolist() == [rank, rank]
            dist.barrier()
            assert [call.op for call in recording.calls()] == ["barrier"]
            assert [(call.op, call.group, call.tag) for call in skip.asked] == [
                ("all_reduce", "default", "vote"),
                ("all_reduce", "default", None),
                ("barrier", "default", None),
            ]

    on_ranks(body)


def test_every_operation_can_be_left_out() -> None:
    class Everything:
        def around(self, call: Call, proceed: Proceed) -> Any:
            return call.left_out()

    def body(rank: int) -> int:
        with recorded() as recording:
            recording.interception.interposer = Everything()
            every_call(rank)
            x = torch.ones(1)
            dist.send(x, 1 - rank)
            dist.recv(x, 1 - rank)
            return len(recording.calls())

    assert on_ranks(body) == [0, 0]


def test_the_reducer_goes_on_without_a_call_that_is_left_out() -> None:
    def body(rank: int) -> list[float]:
        with recorded() as recording:
            model = DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))
            recording.interception.interposer = Skip("all_reduce")
            model(torch.full((1, 2), float(rank + 1))).sum().backward()
            recording.interception.interposer = None
            dist.barrier()
            gradient = model.module.weight.grad
            assert gradient is not None
            values: list[float] = gradient.flatten().tolist()
            return values

    # Divided by the world's size beforehand, and summed with nobody.
    assert on_ranks(body) == [[0.5, 0.5], [1.0, 1.0]]


def test_a_failed_call_marks_its_error_as_a_victims() -> None:
    from esper.lockstep.rank.recorder import is_victim

    def body(rank: int) -> bool:
        with recorded() as recording:
            dist.barrier()
            recording.calls()
            if rank == 1:
                return True  # it stays away
            work = dist.all_reduce(torch.ones(1), async_op=True)
            assert work is not None
            try:
                work.wait(timedelta(milliseconds=50))
            except RuntimeError as error:
                try:
                    raise ValueError("of it") from error
                except ValueError as consequence:
                    return is_victim(consequence) and not is_victim(ValueError("of its own"))
            return False

    assert on_ranks(body) == [True, True]
