"""The sentence for every coordinate and argument of a fault that can't be obeyed."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from pytest_esper_ddp.errors import MarkerError
from pytest_esper_ddp.faults.catalogue import CATALOGUE, OPS
from pytest_esper_ddp.markers import scenario_of
from pytest_esper_ddp.scenario import Fault
from tests.pytest_esper_ddp.plans import SETTINGS, item

TARGET = "package.module:Class.method"
ALL = (
    "all_gather, all_gather_coalesced, all_reduce, all_reduce_coalesced, all_to_all, barrier, broadcast, "
    "gather, monitored_barrier, recv, reduce, reduce_scatter, reduce_scatter_coalesced, scatter, send"
)
WITH_TENSORS = ALL.replace("barrier, ", "", 1).replace("monitored_barrier, ", "")
PLAIN = (
    "must be plain data, which can be sent to a rank: None, numbers, text, bytes, and lists, tuples, sets or "
    "dicts of these"
)


def planned(kind: str, **given: Any) -> Fault:
    (fault,) = scenario_of(
        item(pytest.mark.ddp(4), pytest.mark.ddp_fault(kind, rank=1, **given)), SETTINGS
    ).faults
    return fault


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("skip", {"op": "allreduce"}, f"op='allreduce' is no collective; known: {ALL}"),
        (
            "root",
            {"op": "all_reduce"},
            "root can't be done to all_reduce; it can to: broadcast, gather, reduce, scatter",
        ),
        (
            "reduce_op",
            {"op": "broadcast"},
            "reduce_op can't be done to broadcast; it can to: all_reduce, all_reduce_coalesced, reduce, "
            "reduce_scatter, reduce_scatter_coalesced",
        ),
        (
            "shape",
            {"op": "all_to_all"},
            f"shape can't be done to all_to_all; it can to: {WITH_TENSORS.replace('all_to_all, ', '')}",
        ),
        ("dtype", {"op": "barrier"}, f"dtype can't be done to barrier; it can to: {WITH_TENSORS}"),
        ("corrupt", {"where": "output"}, "where='output' must be one of 'result', 'input'"),
        ("out_of_memory", {"allocator": "cuda"}, "allocator='cuda' must be one of 'torch', 'python'"),
        ("busy", {}, "busy needs seconds"),
        ("slow", {"seconds": 0}, "seconds=0 must be a number of seconds > 0"),
        ("delay", {"seconds": "1"}, "seconds='1' must be a number of seconds > 0"),
        ("raise", {"message": 3}, "message=3 must be text"),
        ("skip_call", {}, "skip_call needs target"),
        ("skip_call", {"target": "module.f"}, f"target='module.f' must be like '{TARGET}'"),
        (
            "skip_call",
            {"target": TARGET, "op": "barrier"},
            "skip_call takes no op; coordinates it has: target, nth",
        ),
        ("delay_in", {"target": TARGET}, "delay_in needs seconds"),
        ("change_result", {"target": TARGET}, "change_result needs value"),
        (
            "change_argument",
            {"target": TARGET, "value": 1},
            "change_argument needs either name or index",
        ),
        (
            "change_argument",
            {"target": TARGET, "value": 1, "name": "x", "index": 0},
            "change_argument needs either name or index",
        ),
        ("change_argument", {"target": TARGET, "value": 1, "name": 0}, "name=0 must be text"),
        ("change_argument", {"target": TARGET, "value": 1, "index": -1}, "index=-1 must be an integer >= 0"),
        (
            "change_argument",
            {"target": TARGET, "value": 1, "index": True},
            "index=True must be an integer >= 0",
        ),
        ("skip_call", {"target": TARGET, "value": int}, f"value=<class 'int'> {PLAIN}"),
        (
            "change_result",
            {"target": TARGET, "value": [1, {2: {int}}]},
            f"value=[1, {{2: {{{int!r}}}}}] {PLAIN}",
        ),
        ("change_result", {"target": TARGET, "value": {int: 1}}, f"value={{{int!r}: 1}} {PLAIN}"),
        (
            "repeat_call",
            {"target": TARGET, "value": 1},
            "unknown argument value; repeat_call accepts: none",
        ),
    ],
)
def test_what_is_not_accepted(kind: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(MarkerError) as caught:
        planned(kind, **given)
    written = ", ".join([repr(kind), "rank=1", *(f"{name}={value!r}" for name, value in given.items())])
    assert str(caught.value) == f"ddp_fault({written}): {said}"


@pytest.mark.parametrize("kind", ["skip", "kill", "root", "shape"])
def test_every_operator_that_a_kind_can_be_done_to(kind: str) -> None:
    for op in OPS:
        if op in CATALOGUE[kind].ops:
            assert planned(kind, op=op).op == op
        else:
            with pytest.raises(MarkerError):
                planned(kind, op=op)


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, 1j, "a", b"a", [1], (1, [2]), {1}, frozenset("a"), {"a": {"b": None}}]
)
def test_plain_values_reach_a_rank(value: object) -> None:
    fault = planned("change_result", target=TARGET, value=value)
    assert fault.arguments["value"] == value
    assert pickle.loads(pickle.dumps(fault)) == fault
