"""Every form that a marker may have, and the sentence for every form that it may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_esper_ddp.declared import is_ddp, leaves_size_open
from pytest_esper_ddp.errors import MarkerError
from pytest_esper_ddp.faults.catalogue import CATALOGUE
from pytest_esper_ddp.markers import KINDS, scenario_of
from pytest_esper_ddp.scenario import Expectation, Fault, Scenario
from tests.pytest_esper_ddp.plans import SCENARIO, SETTINGS, item

ddp, ddp_fault, ddp_expect = pytest.mark.ddp, pytest.mark.ddp_fault, pytest.mark.ddp_expect

DDP_FORM = (
    "ddp(world_size=None, *, backend=None, timeout=None, isolation=None, init=True, lockstep='enforce', "
    "patience=2.0)"
)
FAULT_FORM = (
    "ddp_fault(kind, *, rank, nth=None, op=None, tag=None, epoch=None, step=None, slot=None, target=None, "
    "**arguments)"
)
EXPECT_FORM = "ddp_expect(kind, *, guilty=None, op=None, tag=None, field=None, raises=None, within=None)"
FAULTS = ", ".join(sorted(CATALOGUE))
OUTCOMES = (
    "crashed, raised, exited, group, order, mismatch, peer, wait_cycle, missing, model, drift, frozen, "
    "stalled, lifecycle, deadline, monitored_barrier, watchdog"
)
SIZE = "must be an integer >= 2 (one rank cannot diverge)"
SECONDS = "must be a number of seconds > 0"


def plan(*marks: pytest.MarkDecorator) -> Scenario:
    return scenario_of(item(*marks), SETTINGS)


def refusal(*marks: pytest.MarkDecorator) -> str:
    with pytest.raises(MarkerError) as caught:
        plan(*marks)
    return str(caught.value)


def test_an_empty_marker_takes_the_options() -> None:
    settings = replace(SETTINGS, world_sizes=(3, 4), backend="auto", timeout=9.0, isolation="fresh")
    assert scenario_of(item(ddp), settings) == replace(
        SCENARIO, world_size=3, backend="auto", timeout=9.0, isolation="fresh"
    )


def test_the_marker_comes_before_the_options() -> None:
    marker = ddp(
        4, backend="auto", timeout=5, isolation="fresh", init=False, lockstep="observe", patience=0.5
    )
    assert plan(marker) == Scenario(
        world_size=4,
        backend="auto",
        timeout=5.0,
        isolation="fresh",
        init=False,
        lockstep="observe",
        patience=0.5,
    )
    assert plan(ddp(world_size=4)) == plan(ddp(4)) == SCENARIO


def test_a_swept_size_stands_for_a_missing_one_only() -> None:
    swept = {"ddp_world_size": 6}
    assert scenario_of(item(ddp, params=swept), SETTINGS).world_size == 6
    assert scenario_of(item(ddp(3), params=swept), SETTINGS).world_size == 3


def test_which_items_are_on_ranks_and_which_are_swept() -> None:
    assert not is_ddp(item())
    assert not leaves_size_open(item())
    for open_marker in (ddp, ddp(None), ddp(world_size=None), ddp(timeout=3)):
        assert is_ddp(item(open_marker))
        assert leaves_size_open(item(open_marker))
    for marker in (ddp(3), ddp(world_size=3)):
        assert not leaves_size_open(item(marker))


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (ddp(1), f"ddp: world_size=1 {SIZE}"),
        (ddp(world_size=0), f"ddp: world_size=0 {SIZE}"),
        (ddp(world_size=-2), f"ddp: world_size=-2 {SIZE}"),
        (ddp(world_size="4"), f"ddp: world_size='4' {SIZE}"),
        (ddp(world_size=2.0), f"ddp: world_size=2.0 {SIZE}"),
        (ddp(world_size=True), f"ddp: world_size=True {SIZE}"),
        (ddp(world_size=[2, 4]), f"ddp: world_size=[2, 4] {SIZE}"),
        (ddp(backend="mpi"), "ddp: backend='mpi' must be one of 'gloo', 'nccl', 'auto'"),
        (ddp(backend=""), "ddp: backend='' must be one of 'gloo', 'nccl', 'auto'"),
        (ddp(isolation="none"), "ddp: isolation='none' must be one of 'pool', 'fresh'"),
        (ddp(lockstep="on"), "ddp: lockstep='on' must be one of 'enforce', 'observe', 'off'"),
        (ddp(lockstep=False), "ddp: lockstep=False must be one of 'enforce', 'observe', 'off'"),
        (ddp(timeout=0), f"ddp: timeout=0 {SECONDS}"),
        (ddp(timeout=-1), f"ddp: timeout=-1 {SECONDS}"),
        (ddp(timeout="3"), f"ddp: timeout='3' {SECONDS}"),
        (ddp(timeout=True), f"ddp: timeout=True {SECONDS}"),
        (ddp(timeout=float("nan")), f"ddp: timeout=nan {SECONDS}"),
        (ddp(patience=0), f"ddp: patience=0 {SECONDS}"),
        (ddp(init=1), "ddp: init=1 must be True or False"),
        (ddp(init=None), "ddp: init=None must be True or False"),
        (
            ddp(size=4),
            f"ddp(size=4): got an unexpected keyword argument 'size'; accepted: {DDP_FORM}",
        ),
        (ddp(2, "gloo"), f"ddp(2, 'gloo'): too many positional arguments; accepted: {DDP_FORM}"),
    ],
)
def test_a_wrong_ddp_marker(marker: pytest.MarkDecorator, said: str) -> None:
    assert refusal(marker) == said


def fault(kind: Any, **given: Any) -> pytest.MarkDecorator:
    marker: pytest.MarkDecorator = ddp_fault(kind, **{"rank": 1, **given})
    return marker


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (
            fault("explode"),
            f"ddp_fault('explode', rank=1): unknown kind 'explode'; known: {FAULTS}",
        ),
        (fault(["skip"]), f"ddp_fault(['skip'], rank=1): unknown kind ['skip']; known: {FAULTS}"),
        (
            ddp_fault("skip"),
            f"ddp_fault('skip'): missing a required argument: 'rank'; accepted: {FAULT_FORM}",
        ),
        (
            ddp_fault(rank=1),
            f"ddp_fault(rank=1): missing a required argument: 'kind'; accepted: {FAULT_FORM}",
        ),
        (
            ddp_fault("skip", 1),
            f"ddp_fault('skip', 1): too many positional arguments; accepted: {FAULT_FORM}",
        ),
        (
            ddp_fault("skip", rank=4),
            "ddp_fault('skip', rank=4): rank=4 must be a rank of this world, 0 to 3",
        ),
        (
            ddp_fault("skip", rank=-1),
            "ddp_fault('skip', rank=-1): rank=-1 must be a rank of this world, 0 to 3",
        ),
        (
            ddp_fault("skip", rank="1"),
            "ddp_fault('skip', rank='1'): rank='1' must be a rank of this world, 0 to 3",
        ),
        (
            ddp_fault("skip", rank=True),
            "ddp_fault('skip', rank=True): rank=True must be a rank of this world, 0 to 3",
        ),
        (fault("skip", nth=0), "ddp_fault('skip', rank=1, nth=0): nth=0 must be an integer >= 1"),
        (fault("skip", nth="2"), "ddp_fault('skip', rank=1, nth='2'): nth='2' must be an integer >= 1"),
        (fault("skip", nth=True), "ddp_fault('skip', rank=1, nth=True): nth=True must be an integer >= 1"),
        (
            fault("skip_gate", epoch=-1),
            "ddp_fault('skip_gate', rank=1, epoch=-1): epoch=-1 must be an integer >= 0",
        ),
        (fault("skip", op=3), "ddp_fault('skip', rank=1, op=3): op=3 must be text"),
        (fault("skip", tag=b"x"), "ddp_fault('skip', rank=1, tag=b'x'): tag=b'x' must be text"),
        (fault("skip_gate", slot=2), "ddp_fault('skip_gate', rank=1, slot=2): slot=2 must be text"),
        (
            fault("uneven_loader", target="package.Loader"),
            "ddp_fault('uneven_loader', rank=1, target='package.Loader'): target='package.Loader' must be "
            "like 'package.module:Class.method'",
        ),
        (
            fault("skip", epoch=1),
            "ddp_fault('skip', rank=1, epoch=1): skip takes no epoch; coordinates it has: op, nth, tag",
        ),
        (
            fault("skip", target="a:b"),
            "ddp_fault('skip', rank=1, target='a:b'): skip takes no target; coordinates it has: op, nth, tag",
        ),
        (fault("sleep"), "ddp_fault('sleep', rank=1): sleep needs seconds"),
        (
            fault("sleep", seconds="long"),
            f"ddp_fault('sleep', rank=1, seconds='long'): seconds='long' {SECONDS}",
        ),
        (
            fault("sleep", seconds=None),
            f"ddp_fault('sleep', rank=1, seconds=None): seconds=None {SECONDS}",
        ),
        (
            fault("stop", for_seconds=-1),
            f"ddp_fault('stop', rank=1, for_seconds=-1): for_seconds=-1 {SECONDS}",
        ),
        (
            fault("exit", code=256),
            "ddp_fault('exit', rank=1, code=256): code=256 must be an exit status, 0 to 255",
        ),
        (
            fault("exit", code="1"),
            "ddp_fault('exit', rank=1, code='1'): code='1' must be an exit status, 0 to 255",
        ),
        (
            fault("skip", times=2),
            "ddp_fault('skip', rank=1, times=2): unknown argument times; skip accepts: none",
        ),
        (
            fault("raise", mesage="x"),
            "ddp_fault('raise', rank=1, mesage='x'): unknown argument mesage; raise accepts: message",
        ),
    ],
)
def test_a_wrong_fault(marker: pytest.MarkDecorator, said: str) -> None:
    assert refusal(ddp(4), marker) == said


def expect(kind: Any, **given: Any) -> pytest.MarkDecorator:
    marker: pytest.MarkDecorator = ddp_expect(kind, **given)
    return marker


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (ddp_expect(), f"ddp_expect(): missing a required argument: 'kind'; accepted: {EXPECT_FORM}"),
        (
            expect("missing", rank=2),
            "ddp_expect('missing', rank=2): got an unexpected keyword argument 'rank'; accepted: "
            + EXPECT_FORM,
        ),
        (expect("hang"), f"ddp_expect('hang'): unknown kind 'hang'; known: {OUTCOMES}"),
        (expect(["missing"]), f"ddp_expect(['missing']): unknown kind ['missing']; known: {OUTCOMES}"),
        (
            expect("missing", guilty=2),
            "ddp_expect('missing', guilty=2): guilty=2 must be a list of ranks, like [2]",
        ),
        (
            expect("missing", guilty=[]),
            "ddp_expect('missing', guilty=[]): guilty=[] must be a list of ranks, like [2]",
        ),
        (
            expect("missing", guilty=[1, 4]),
            "ddp_expect('missing', guilty=[1, 4]): guilty=4 must be a rank of this world, 0 to 3",
        ),
        (expect("missing", op=1), "ddp_expect('missing', op=1): op=1 must be text"),
        (expect("missing", tag=1), "ddp_expect('missing', tag=1): tag=1 must be text"),
        (expect("lifecycle", field=1), "ddp_expect('lifecycle', field=1): field=1 must be text"),
        (
            expect("mismatch", field="size"),
            "ddp_expect('mismatch', field='size'): field='size' is nothing that calls are compared by; "
            "known: op, reduce_op, root, dtype, shape, elements, tag, peer, ranks, world_size, arguments",
        ),
        (
            expect("missing", field="shape"),
            "ddp_expect('missing', field='shape'): field='shape': missing compares nothing; kinds with a "
            "field: order, mismatch, group, peer, model, drift, lifecycle, deadline, monitored_barrier, "
            "watchdog",
        ),
        (expect("missing", within=0), f"ddp_expect('missing', within=0): within=0 {SECONDS}"),
        (expect("missing", within="1"), f"ddp_expect('missing', within='1'): within='1' {SECONDS}"),
        (
            expect("missing", raises="ValueError"),
            "ddp_expect('missing', raises='ValueError'): raises='ValueError' must be an exception class, or "
            "a dict of rank and class",
        ),
        (
            expect("missing", raises=int),
            "ddp_expect('missing', raises=<class 'int'>): raises=<class 'int'> must be an exception class, "
            "or a dict of rank and class",
        ),
        (
            expect("missing", raises={4: ValueError}),
            "ddp_expect('missing', raises={4: <class 'ValueError'>}): raises=4 must be a rank of this "
            "world, 0 to 3",
        ),
        (
            expect("missing", raises={}),
            "ddp_expect('missing', raises={}): raises={} names no rank; leave it out, or give an "
            "exception class",
        ),
    ],
)
def test_a_wrong_expectation(marker: pytest.MarkDecorator, said: str) -> None:
    assert refusal(ddp(4), marker) == said


def test_one_outcome_is_enough() -> None:
    assert (
        refusal(ddp(4), expect("missing"), expect("order"))
        == "2 ddp_expect markers: a test has one outcome; give one"
    )


def test_what_the_program_is_to_do_is_only_watched() -> None:
    for kind in ("lifecycle", "deadline", "monitored_barrier", "watchdog"):
        assert plan(ddp(4), expect(kind)).lockstep == "observe"
        assert plan(ddp(4, lockstep="off"), expect(kind)).lockstep == "off"
        assert refusal(ddp(4, lockstep="enforce"), expect(kind)) == (
            f"ddp_expect({kind!r}) waits for the program's own end, which ddp(lockstep='enforce') would come "
            "before: leave lockstep out, or give 'observe'"
        )


def test_what_lockstep_is_to_find_needs_lockstep() -> None:
    assert plan(ddp(4), expect("missing")).lockstep == "enforce"
    assert plan(ddp(4, lockstep="observe"), expect("missing")).lockstep == "observe"
    assert refusal(ddp(4, lockstep="off"), expect("missing")) == (
        "ddp_expect('missing') needs lockstep, and ddp(lockstep='off') turns it off"
    )


def test_a_fault_at_a_collective_needs_one_that_is_seen() -> None:
    assert refusal(ddp(4, lockstep="off"), fault("skip")) == (
        "ddp_fault('skip') acts at a collective, and ddp(lockstep='off') sees none: give 'observe'"
    )
    assert plan(ddp(4, lockstep="off"), fault("uneven_loader")).faults


@pytest.mark.parametrize("kind", KINDS)
def test_every_outcome_may_be_expected(kind: str) -> None:
    assert plan(ddp(4), expect(kind)).expectation == Expectation(kind=kind)


def test_all_that_an_expectation_may_say() -> None:
    marker = expect("model", guilty=(3, 1), op="all_reduce", tag="a", field="b", raises=OSError, within=2)
    assert plan(ddp(4), marker).expectation == Expectation(
        kind="model", guilty=(1, 3), op="all_reduce", tag="a", field="b", raises=OSError, within=2
    )
    by_rank = {0: OSError, 3: ValueError}
    assert plan(ddp(4), expect("missing", raises=by_rank)).expectation == Expectation(
        kind="missing", raises=by_rank
    )


@pytest.mark.parametrize("kind", sorted(CATALOGUE))
def test_every_fault_takes_what_it_declares(kind: str) -> None:
    spec = CATALOGUE[kind]
    places = {"nth": 2, "epoch": 0, "step": 3, "op": spec.ops[0], "target": "package.module:function"}
    values = {
        "seconds": 1.5,
        "for_seconds": None,
        "code": 3,
        "where": "input",
        "allocator": "python",
        "value": [1, {"a": (None, b"")}],
    }
    given: dict[str, Any] = {name: places.get(name, "text") for name in spec.coordinates}
    # An argument to be changed has a name or a place.
    rest = {name: values.get(name, "text") for name in spec.arguments if name != "index"}
    assert plan(ddp(4), fault(kind, **given, **rest)).faults == (
        Fault(kind=kind, rank=1, arguments=rest, **given),
    )


def test_faults_come_in_the_order_in_which_they_are_read() -> None:
    # Of two decorators the lower one is applied, and listed, first.
    faults = plan(ddp(4), fault("kill"), fault("skip")).faults
    assert [one.kind for one in faults] == ["skip", "kill"]
