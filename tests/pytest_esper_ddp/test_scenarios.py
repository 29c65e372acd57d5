"""Faults and expected outcomes, run for real; and what one test may leave to the next."""

from __future__ import annotations

import re

import pytest

from tests.pytest_esper_ddp.inner import Inner, Result

SCENARIOS = """
def loop(times=5):
    for _ in range(times):
        dist.all_reduce(torch.ones(8))

@ddp4
@fault("skip", rank=2, op="all_reduce", nth=3)
@expect("missing", guilty=[2], op="all_reduce")
def test_skip(ddp):
    loop()

@ddp4
@fault("kill", rank=1, op="all_reduce", nth=2)
@expect("crashed", guilty=[1])
def test_kill(ddp):
    loop()

@ddp2
@fault("segfault", rank=1)
@expect("crashed", guilty=[1], op="all_reduce")
def test_segfault(ddp):
    loop()

@ddp4
@fault("stop", rank=3, op="all_reduce", nth=2)
@expect("frozen", guilty=[3])
def test_stop(ddp):
    loop()

@ddp2
@fault("stop", rank=1, nth=2, for_seconds=0.1)
def test_a_short_stop_is_survived(ddp):
    loop()

@ddp2
@fault("exit", rank=1, code=0)
@expect("exited", guilty=[1])
def test_exit(ddp):
    loop()

@ddp2
@fault("raise", rank=0, op="all_reduce", nth=2, message="out of luck")
@expect("raised", guilty=[0])
def test_raise(ddp):
    loop()

@ddp2
@fault("raise", rank=0)
def test_a_raise_that_the_test_awaits(ddp):
    if ddp.rank == 0:
        with pytest.raises(RuntimeError, match="^injected$"):
            dist.all_reduce(torch.ones(1))
        dist.all_reduce(torch.ones(1))
    else:
        dist.all_reduce(torch.ones(1))

@pytest.mark.ddp(patience=0.3)
@fault("sleep", rank=1, nth=2, seconds=20)
@expect("frozen", guilty=[1])
def test_sleep(ddp):
    loop()

@ddp2
@fault("sleep", rank=1, nth=2, seconds=0.05)
def test_a_short_sleep_is_survived(ddp):
    loop()

class Passes:
    def __iter__(self):
        return iter(range(3))

@ddp2
@fault("uneven_loader", rank=1, target="test_inner:Passes.__iter__")
@expect("missing", guilty=[1], op="all_reduce")
def test_uneven(ddp):
    for batch in Passes():
        dist.all_reduce(torch.ones(1))

@ddp4
@fault("stop", rank=2, op="monitored_barrier")
@expect("monitored_barrier", guilty=[2])
def test_the_program_finds_out_itself(ddp):
    from datetime import timedelta
    # Longer than it takes to see that the rank is stopped: looking must not make it go on.
    dist.monitored_barrier(timeout=timedelta(seconds=1.5))

@ddp4
@fault("skip", rank=2, op="monitored_barrier")
@expect("monitored_barrier", guilty=[2], raises=RuntimeError)
def test_the_program_finds_out_that_one_never_came(ddp):
    from datetime import timedelta
    dist.monitored_barrier(timeout=timedelta(seconds=0.5))

def agree(ddp, guilty, kind="deadline"):
    from esper.lockstep import DivergenceError
    time.sleep(0.8)
    raise DivergenceError("rank 1 is late", kind=kind, guilty=guilty)

@ddp2
@fault("raise", rank=1)
@expect("deadline", guilty=[1])
def test_the_program_has_its_own_time(ddp):
    if ddp.rank == 1:
        dist.barrier()  # fails at once, and half a second later the other would have been ended
    agree(ddp, [1])

@ddp2
@fault("kill", rank=1)
@expect("deadline", guilty=[1])
def test_the_program_has_its_own_time_after_a_death(ddp):
    if ddp.rank == 1:
        dist.barrier()
    agree(ddp, [1])

# From here on nothing comes as it is expected.

@ddp2
@fault("skip", rank=1, op="broadcast")
@expect("missing", guilty=[1])
def test_never_fired(ddp):
    loop()

@ddp2
@fault("skip", rank=1, op="all_reduce", nth=6)
def test_never_so_often(ddp):
    loop()

@ddp2
@fault("skip", rank=1)
def test_no_outcome_was_expected(ddp):
    loop()

@ddp4
@fault("skip", rank=2, op="all_reduce", nth=3)
@expect("missing", guilty=[1])
def test_wrong_rank(ddp):
    loop()

@ddp4
@fault("skip", rank=2, op="all_reduce", nth=3)
@expect("crashed", guilty=[2])
def test_wrong_kind(ddp):
    loop()

@ddp2
@fault("sleep", rank=1, seconds=0.01)
@expect("missing", guilty=[1])
def test_healthy(ddp):
    loop()

@ddp2
@expect("missing", guilty=[1])
def test_healthy_without_a_fault(ddp):
    loop()

@ddp2
@fault("skip", rank=1, op="barrier")
@expect("lifecycle", guilty=[1])
def test_another_of_its_own_ends(ddp):
    dist.barrier() if ddp.rank else None
    agree(ddp, [1])

@ddp2
@pytest.mark.xfail(reason="not yet", strict=True)
@fault("skip", rank=1, nth=2)
@expect("order", guilty=[1])
def test_not_yet(ddp):
    loop()

@ddp2
def test_the_next_one(ddp):
    loop()
"""
HEALTHY = {
    "test_skip",
    "test_kill",
    "test_segfault",
    "test_stop",
    "test_a_short_stop_is_survived",
    "test_exit",
    "test_raise",
    "test_a_raise_that_the_test_awaits",
    "test_sleep",
    "test_a_short_sleep_is_survived",
    "test_uneven",
    "test_the_program_finds_out_itself",
    "test_the_program_finds_out_that_one_never_came",
    "test_the_program_has_its_own_time",
    "test_the_program_has_its_own_time_after_a_death",
    "test_the_next_one",
}
WRONG = {
    "test_never_fired": "inconclusive: the fault never fired: skip on rank 1 (op broadcast)",
    "test_never_so_often": "inconclusive: the fault never fired: skip on rank 1 (op all_reduce, nth 6)",
    "test_no_outcome_was_expected": (
        "expected to end healthy, since nothing says ddp_expect; got missing of rank 1"
    ),
    "test_wrong_rank": "expected missing of rank 1, got missing of rank 2",
    "test_wrong_kind": "expected crashed of rank 2, got missing of rank 2",
    "test_healthy": "expected missing of rank 1, but the run ended healthy",
    "test_healthy_without_a_fault": "expected missing of rank 1, but the run ended healthy",
    "test_another_of_its_own_ends": "expected lifecycle of rank 1, got deadline of rank 1",
}


@pytest.fixture(scope="module")
def result(inner_of_module: Inner) -> Result:
    inner_of_module.file(SCENARIOS)
    return inner_of_module.run()


def test_what_passes(result: Result) -> None:
    assert result.passed == HEALTHY, result.text


def test_what_fails_says_why_in_its_first_line(result: Result) -> None:
    failed = {name: result.messages[name] for name, end in result.ends.items() if end == "FAILED"}
    assert failed == WRONG


def test_a_strict_xfail_holds_for_an_outcome_that_does_not_come(result: Result) -> None:
    assert result.ends["test_not_yet"] == "XFAIL"


def test_what_came_instead_follows(result: Result) -> None:
    told = result.told("test_wrong_rank")
    assert "rank 2 never entered all_reduce #" in told


def test_the_table_has_a_row_for_each_scenario(result: Result) -> None:
    rows = {row[0]: row[1:] for row in result.table}
    assert rows["scenario"] == ["fault", "outcome", "guilty", "seconds"]
    expected = (HEALTHY | set(WRONG)) - {"test_the_next_one"} | {"test_not_yet"}
    assert set(rows) - {"scenario"} == {name.removeprefix("test_") for name in expected}
    assert rows["skip"][:3] == ["skip on rank 2 (op all_reduce, nth 3)", "missing", "2"]
    assert rows["stop"][:3] == ["stop on rank 3 (op all_reduce, nth 2)", "frozen", "3"]
    assert rows["a_short_sleep_is_survived"] == ["sleep on rank 1 (nth 2, seconds 0.05)", "healthy", "-", "-"]
    assert rows["wrong_kind"][1:3] == ["FAILED: missing", "2"]
    assert all(re.fullmatch(r"\d+\.\d\d|-", row[3]) for name, row in rows.items() if name != "scenario")


def test_nothing_of_ours_is_printed(result: Result) -> None:
    assert "Traceback" not in result.text + result.errors
