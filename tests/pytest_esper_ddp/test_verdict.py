"""A run held against what its test expects, without a process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_esper_ddp.scenario import Expectation, Fault, Scenario
from pytest_esper_ddp.verdict import Observed, Verdict, judge
from pytest_esper_ddp.wire.messages import Failure
from tests.pytest_esper_ddp.plans import SCENARIO, diagnosis, failure

SKIP = Fault(kind="skip", rank=2, op="all_reduce")
HEALTHY = Observed(None, 0.0, {}, {0: 10.0}, None, 9.0)
MISSING = replace(HEALTHY, diagnosis=diagnosis(), decided_at=10.25)


def plan(kind: str | None = None, **given: Any) -> Scenario:
    return replace(
        SCENARIO, faults=(SKIP,), expectation=None if kind is None else Expectation(kind=kind, **given)
    )


def problem(scenario: Scenario, observed: Observed) -> str:
    verdict = judge(scenario, observed)
    assert verdict.passed == (not verdict.problem)
    return verdict.problem


def named(kind: str | None = "lifecycle", guilty: tuple[int, ...] = (2,), **given: Any) -> Failure:
    return failure(
        kind=kind, guilty=guilty, type="LifecycleDivergence", bases=("esper.LifecycleDivergence",), **given
    )


def by_program(*innocents: int, **given: Any) -> Observed:
    return replace(HEALTHY, failures={rank: named(at=11.0 + rank, **given) for rank in innocents})


def test_the_expected_outcome_passes() -> None:
    assert judge(plan("missing", guilty=(2,)), MISSING) == Verdict(True, "missing", (2,), 0.25)


def test_a_healthy_end_passes_where_no_outcome_is_expected() -> None:
    assert judge(plan(), HEALTHY) == Verdict(True, "healthy", (), None)


@pytest.mark.parametrize(
    ("observed", "outcome", "said"),
    [
        (MISSING, "missing", "got missing of rank 2"),
        (replace(HEALTHY, failures={1: failure()}), "failed", "got failed"),
        (replace(HEALTHY, exits={1: -9, 0: 1}), "exited", "ranks 0, 1 ended, which held nobody up"),
        (
            replace(HEALTHY, ended_by="timeout"),
            "timeout",
            "nothing was diagnosed before the test's time-out",
        ),
    ],
)
def test_any_other_end_fails_where_no_outcome_is_expected(
    observed: Observed, outcome: str, said: str
) -> None:
    verdict = judge(plan(), observed)
    assert verdict.problem == f"expected to end healthy, since nothing says ddp_expect; {said}"
    assert verdict.outcome == outcome


def test_an_expected_outcome_that_does_not_come() -> None:
    said = "expected missing of rank 2, but "
    scenario = plan("missing", guilty=(2,))
    assert problem(scenario, HEALTHY) == said + "the run ended healthy"
    assert problem(scenario, replace(HEALTHY, ended_by="timeout")) == (
        said + "nothing was diagnosed before the test's time-out"
    )
    assert problem(scenario, replace(HEALTHY, exits={2: 0})) == said + "rank 2 ended, which held nobody up"


def test_another_outcome() -> None:
    assert problem(plan("order"), MISSING) == "expected order, got missing of rank 2"
    failed = replace(HEALTHY, failures={1: failure()})
    assert problem(plan("order", guilty=(1, 2)), failed) == (
        "expected order of ranks 1, 2, got failed of no rank"
    )


def test_another_rank() -> None:
    assert problem(plan("missing", guilty=(1,)), MISSING) == (
        "expected missing of rank 1, got missing of rank 2"
    )


def test_the_place_may_be_that_of_either_side() -> None:
    for given in ({"op": "all_reduce"}, {"op": "barrier"}, {"tag": "gate"}, {"tag": "loss"}):
        assert problem(plan("missing", **given), MISSING) == ""
    assert problem(plan("missing", op="broadcast"), MISSING) == (
        "expected op 'broadcast', got all_reduce, barrier"
    )
    assert problem(plan("missing", tag="other"), MISSING) == "expected tag 'other', got gate, loss"


def test_what_two_calls_have_otherwise_is_named_in_full() -> None:
    seen = replace(MISSING, diagnosis=diagnosis("mismatch", fields=("reduce_op", "shape")))
    for field in ("reduce_op", "shape"):
        assert problem(plan("mismatch", field=field), seen) == ""
    assert problem(plan("mismatch", field="op"), seen) == "expected field 'op', got reduce_op, shape"
    assert problem(plan("mismatch", field="op"), replace(MISSING, diagnosis=diagnosis("mismatch"))) == (
        "expected field 'op', got none"
    )


def test_a_tensor_is_named_by_a_part_of_the_sentence() -> None:
    seen = replace(
        MISSING, diagnosis=diagnosis("drift", fields=("fc.weight differs between rank 0 and rank 1",))
    )
    assert problem(plan("drift", field="fc.weight"), seen) == ""
    assert problem(plan("drift", field="fc.bias"), seen) == (
        "expected field 'fc.bias', got fc.weight differs between rank 0 and rank 1"
    )


def test_a_place_that_nobody_names() -> None:
    bare = replace(MISSING, diagnosis=diagnosis(guilty_at={}, waiting=replace(diagnosis().waiting, tag=None)))
    assert problem(plan("missing", tag="gate"), bare) == "expected tag 'gate', got none"


def test_too_late() -> None:
    assert problem(plan("missing"), replace(MISSING, decided_at=11.0)) == ""
    assert problem(plan("missing"), replace(MISSING, decided_at=11.01)) == (
        "missing came 1.01 s after the fault; expected within 1 s"
    )
    assert problem(plan("missing", within=0.2), MISSING) == (
        "missing came 0.25 s after the fault; expected within 0.2 s"
    )


def test_a_suspicion_has_its_patience_and_half_a_second() -> None:
    frozen = replace(HEALTHY, diagnosis=diagnosis("frozen"), decided_at=12.5)
    assert problem(plan("frozen"), frozen) == ""
    assert problem(plan("frozen"), replace(frozen, decided_at=12.51)) == (
        "frozen came 2.51 s after the fault; expected within 2.5 s"
    )


@pytest.mark.parametrize(("starved_for", "compiled_for"), [(1.5, 0.0), (0.0, 1.5), (1.0, 0.5)])
def test_time_without_a_processor_or_in_the_compiler_is_not_held_against_the_diagnosis(
    starved_for: float, compiled_for: float
) -> None:
    late = diagnosis("stalled", starved=starved_for, compiled=compiled_for)
    starved = replace(HEALTHY, diagnosis=late, decided_at=14.0)
    assert problem(plan("stalled"), starved) == ""
    assert problem(plan("stalled"), replace(starved, decided_at=14.01)) == (
        "stalled came 4.01 s after the fault; expected within 4 s"
    )
    assert problem(plan("stalled", within=2.5), starved) == (
        "stalled came 4.00 s after the fault; expected within 2.5 s"
    )


def test_the_clock_starts_when_the_first_fault_fires() -> None:
    scenario = replace(plan("missing"), faults=(SKIP, replace(SKIP, nth=2)))
    assert judge(scenario, replace(MISSING, fired={0: 10.2, 1: 10.0})).seconds == pytest.approx(0.25)
    # Without a fault it starts with the test.
    assert judge(replace(plan("missing"), faults=()), replace(MISSING, fired={})).seconds == pytest.approx(
        1.25
    )


def test_a_fault_that_never_fired_is_inconclusive_whatever_came() -> None:
    said = "inconclusive: the fault never fired: skip on rank 2 (op all_reduce)"
    for scenario in (plan(), plan("missing")):
        for observed in (HEALTHY, MISSING):
            assert problem(scenario, replace(observed, fired={})) == said
    twice = replace(plan("missing"), faults=(SKIP, replace(SKIP, nth=7)))
    assert problem(twice, MISSING) == (
        "inconclusive: the fault never fired: skip on rank 2 (op all_reduce, nth 7)"
    )


def test_the_program_names_it_on_every_innocent_rank() -> None:
    scenario = plan("lifecycle", guilty=(2,), field="slots.alpha")
    fields = {"fields": ("r0c0.slots.alpha",)}
    assert judge(scenario, by_program(0, 1, 3, **fields)) == Verdict(True, "lifecycle", (2,), 4.0)
    assert problem(scenario, by_program(0, 3, **fields)) == "lifecycle was raised, but not on rank 1"
    assert problem(scenario, by_program(0, 1, 3, fields=("epoch",))) == (
        "expected field 'slots.alpha', got epoch"
    )
    assert problem(scenario, by_program(0, 1, 3)) == "expected field 'slots.alpha', got none"


def test_the_program_says_the_same_on_every_innocent_rank() -> None:
    seen = by_program(0, 1, 3)
    for other in (named(guilty=(1,), at=14.0), named("deadline", at=14.0), failure(at=14.0)):
        wrong = replace(seen, failures={**seen.failures, 1: other})
        assert problem(plan("lifecycle"), wrong) == "lifecycle names rank 2, but not on rank 1"


def test_the_guilty_rank_may_fail_first_in_its_own_way() -> None:
    seen = by_program(0, 1, 3)
    seen = replace(seen, failures={2: failure(at=10.5), **seen.failures})
    assert problem(plan("lifecycle", guilty=(2,)), seen) == ""


def test_lockstep_does_not_come_before_the_program() -> None:
    both = replace(by_program(0, 1, 3), diagnosis=diagnosis(), decided_at=10.1)
    assert problem(plan("lifecycle"), both) == ""
    # Where nobody said anything, what lockstep saw is told.
    assert problem(plan("lifecycle"), MISSING) == "expected lifecycle, got missing of rank 2"


def test_a_program_has_its_own_deadline() -> None:
    late = replace(HEALTHY, failures={rank: named("deadline", at=70.0) for rank in (0, 1, 3)})
    assert problem(plan("deadline"), late) == ""
    assert problem(plan("deadline", within=5), late) == (
        "deadline came 60.00 s after the fault; expected within 5 s"
    )


def test_a_monitored_barrier_names_the_guilty_on_rank_0_only() -> None:
    told = failure(text="RuntimeError: Rank 2 failed to pass monitoredBarrier in 1000 ms", guilty=(2,))
    sent = failure(text="RuntimeError: Rank 1 successfully reached monitoredBarrier, see rank 0")
    scenario = plan("monitored_barrier", guilty=(2,))
    seen = replace(HEALTHY, failures={0: told, 1: sent, 3: sent})
    assert problem(scenario, seen) == ""
    assert problem(scenario, replace(seen, failures={0: told, 1: sent})) == (
        "monitored_barrier was raised, but not on rank 3"
    )
    assert problem(scenario, replace(seen, failures={**seen.failures, 3: replace(told, guilty=(1,))})) == (
        "monitored_barrier names rank 2, but not on rank 3"
    )


def test_exceptions() -> None:
    seen = replace(MISSING, failures={rank: failure() for rank in (0, 1, 3)})
    assert problem(plan("missing", raises=ValueError), seen) == ""
    assert problem(plan("missing", raises=Exception), seen) == ""
    assert problem(plan("missing", raises=OSError), seen) == "expected OSError on rank 0, got ValueError"
    assert problem(plan("missing", raises=ValueError), MISSING) == (
        "expected ValueError on rank 0, got no exception"
    )
    assert problem(plan("missing", raises={1: ValueError, 2: OSError}), seen) == (
        "expected OSError on rank 2, got no exception"
    )
