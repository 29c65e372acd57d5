"""Which collectives a fault counts and what is done there, without a rank."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from esper.lockstep import tags
from esper.lockstep.rank.interposer import Call
from esper.lockstep.rank.schemas import OpSchema
from pytest_esper_ddp.faults import changes, process
from pytest_esper_ddp.faults.addressed import Address
from pytest_esper_ddp.rank.inject import Injector
from pytest_esper_ddp.scenario import Fault

SCHEMAS = {
    schema.name.removeprefix("c10d::"): OpSchema.of(schema)
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("c10d::") and any(one.name == "process_group" for one in schema.arguments)
}


def a_call(operator: str = "allreduce_", tag: str | None = None, *tensors: torch.Tensor) -> Call:
    return Call(SCHEMAS[operator], "default", tag, ([*tensors],))


def at(kind: str = "skip", **given: Any) -> Fault:
    return Fault(kind=kind, rank=0, **given)


@pytest.mark.parametrize(
    ("fault", "numbers"),
    [
        (at(), [1, 2, 3, 4, 5]),
        (at(op="all_reduce"), [1, 0, 2, 3, 0]),
        (at(tag="a"), [1, 2, 0, 0, 0]),
        (at(op="broadcast", tag="a"), [0, 1, 0, 0, 0]),
        (at(op="barrier"), [0, 0, 0, 0, 1]),
        (at(op="gather"), [0, 0, 0, 0, 0]),
        (at("root"), [0, 1, 0, 0, 0]),
        (at("reduce_op"), [1, 0, 2, 3, 0]),
        (at("shape", tag="b"), [0, 0, 1, 0, 0]),
        (at("corrupt"), [1, 2, 3, 4, 0]),
    ],
)
def test_which_collectives_a_fault_counts(fault: Fault, numbers: list[int]) -> None:
    address = Address(fault)
    calls = [("allreduce_", "a"), ("broadcast_", "a"), ("allreduce_", "b"), ("allreduce_", None)]
    assert [address.count(a_call(*one)) for one in [*calls, ("barrier", None)]] == numbers


class Issued:
    """What the faults let through, and in which order they fired."""

    def __init__(self, *faults: Fault, rank: int = 0) -> None:
        self.args: list[Any] = []
        self.fired: list[int] = []
        recorder = SimpleNamespace(event=lambda kind, index: self.fired.append(index))
        self.interception = SimpleNamespace(interposer=None)
        self.injector = Injector(faults, rank, cast(Any, recorder), cast(Any, self.interception))

    def through(self, *tags: str | None) -> list[Any]:
        """What the callers get."""
        with self.injector:
            return [self._issue(tag) for tag in tags]

    def _issue(self, tag: str | None) -> Any:
        call = replace(a_call("recv_", tag), args=(tag,))
        return self.injector.around(call, self._proceed)

    def _proceed(self, *args: Any) -> str:
        self.args.append(args)
        return f"result {args[0]}"


def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_only_the_rank_of_the_fault_has_it() -> None:
    issued = Issued(at(), rank=1)
    assert issued.through("a", "b") == ["result a", "result b"]
    assert issued.fired == []


def test_something_stands_between_only_where_there_is_a_fault_and_while_it_runs() -> None:
    without, issued = Issued(at(), rank=1), Issued(at())
    with without.injector, issued.injector:
        stand = [without.interception.interposer, issued.interception.interposer]
    assert stand == [None, issued.injector]
    assert issued.interception.interposer is None


def test_the_nth_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = slow(monkeypatch)
    issued = Issued(at("sleep", nth=2, arguments={"seconds": 1.5}))
    assert issued.through("a", "b", "c") == ["result a", "result b", "result c"]
    assert (slept, issued.fired, len(issued.injector.fired())) == ([1.5], [0], 1)


def test_slow_fires_once_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = slow(monkeypatch)
    issued = Issued(at("slow", nth=2, arguments={"seconds": 1.5}))
    issued.through("a", "b", "c")
    assert (slept, issued.fired) == ([1.5, 1.5], [0])


def test_faults_at_one_place_act_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = slow(monkeypatch)
    first, second = (at("sleep", arguments={"seconds": seconds}) for seconds in (1.0, 2.0))
    issued = Issued(first, second)
    issued.through("a")
    assert (slept, issued.fired) == ([1.0, 2.0], [0, 1])


def test_a_swap_holds_the_first_back() -> None:
    issued = Issued(at("swap", nth=2))
    results = issued.through("a", "b", "c", "d")
    assert issued.args == [("a",), ("c",), ("b",), ("d",)]
    assert issued.fired == [0]
    assert [one for one in results if isinstance(one, str)] == ["result a", "result c", "result d"]


def test_a_swap_takes_the_next_whatever_its_tag_and_gives_each_its_own() -> None:
    issued = Issued(at("swap", tag="b"))
    tags_at_issue: list[str | None] = []
    with issued.injector:
        for tag in ("a", "b", "c"):
            tags.current.tag = tag
            call = replace(a_call("recv_", tag), args=(tag,))
            issued.injector.around(call, lambda *args: tags_at_issue.append(tags.current.tag))
    assert tags_at_issue == ["a", "c", "b"]
    assert tags.current.tag == "c"
    tags.current.tag = None


def test_a_swap_of_one_operator_lets_others_pass() -> None:
    issued = Issued(at("swap", op="recv"))
    with issued.injector:
        for operator in ("recv_", "send", "recv_"):
            call = replace(a_call(operator), args=(f"{operator} {len(issued.args)}",))
            issued.injector.around(call, issued._proceed)
    assert issued.args == [("send 0",), ("recv_ 1",), ("recv_ 0",)]


class Waited(Call):
    """A call of which it is seen when it is waited for."""

    @property
    def waits(self) -> bool:
        return True

    def wait(self, out: object) -> None:
        self.args[-1].append((f"waited for {out}",))


def test_a_swap_waits_for_each_where_its_caller_waits() -> None:
    issued = Issued(at("swap"))
    with issued.injector:
        for name in ("a", "b"):
            call = Waited(SCHEMAS["recv_"], "default", None, (name, issued.args))
            issued.injector.around(call, lambda name, _: issued._proceed(name))
    assert issued.args == [("b",), ("waited for result b",), ("a",), ("waited for result a",)]


def test_a_swap_without_a_second_has_not_fired() -> None:
    issued = Issued(at("swap", nth=2))
    issued.through("a", "b")
    assert (issued.args, issued.fired) == ([("a",)], [])


@pytest.mark.parametrize(
    ("dtype", "before", "after"),
    [
        (torch.float32, 1.0, 1.5),
        (torch.float64, 1.0, 0.0625),
        (torch.float16, 1.0, 1.0625),
        (torch.bfloat16, 1.0, 1.5),
        (torch.int64, 4, 5),
        (torch.int8, 4, 5),
        (torch.bool, False, True),
    ],
)
def test_one_bit_of_the_first_element(dtype: torch.dtype, before: float, after: float) -> None:
    tensor = torch.full((2, 2), before, dtype=dtype)
    changes.flip(tensor)
    assert tensor.flatten().tolist() == [after, before, before, before]
    changes.flip(tensor)
    assert tensor.flatten().tolist() == [before] * 4


def test_a_flip_is_silent_to_autograd_and_needs_an_element() -> None:
    weight = torch.ones((), requires_grad=True)
    loss = weight * weight
    changes.flip(weight)
    loss.backward()  # type: ignore[no-untyped-call]  # raises where a saved tensor was seen to change
    changes.flip(torch.empty(0))
    changes.flip(None)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([4], [3]), ([1], [2]), ([3, 6], [2, 4]), ([1, 2], [2, 4]), ([0], [0])],
)
def test_shapes_change_in_step(sizes: list[int], expected: list[int]) -> None:
    call = a_call("allreduce_coalesced_", None, *(torch.ones(size) for size in sizes))
    (changed,) = changes.CHANGES["shape"](call)
    assert [one.numel() for one in changed] == expected


def test_busy_lets_no_other_thread_run() -> None:
    ticks: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.is_set():
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        process.KINDS["busy"](at("busy", arguments={"seconds": 0.3}), a_call())
    finally:
        over.set()
        thread.join()
    assert max((after - before for before, after in pairwise(ticks)), default=1.0) >= 0.3


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (at("raise"), process.InjectedFault, "^injected$"),
        (at("raise", arguments={"message": "boom"}), process.InjectedFault, "^boom$"),
        (at("out_of_memory"), RuntimeError, "can't allocate memory: you tried to allocate"),
        (at("out_of_memory", arguments={"allocator": "python"}), MemoryError, "^$"),
    ],
)
def test_what_is_raised(fault: Fault, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        process.KINDS[fault.kind](fault, a_call("barrier", None, torch.ones(1)))
