"""N ranks' reports of one item become one report a phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from pytest_esper_ddp.controller.merge import Frame, errored, first_failure, merge
from pytest_esper_ddp.controller.run import Run
from pytest_esper_ddp.verdict import Verdict
from pytest_esper_ddp.wire.messages import Failure, Outcome
from tests.pytest_esper_ddp.plans import diagnosis, failure, item

Phase = Literal["setup", "call", "teardown"]
End = Literal["passed", "failed", "skipped"]
PHASES: tuple[Phase, ...] = ("setup", "call", "teardown")


def report(when: Phase, outcome: End = "passed", longrepr: Any = None, **extra: Any) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid="test_file.py::test_it",
        location=("test_file.py", 0, "test_it"),
        keywords={},
        outcome=outcome,
        longrepr=longrepr,
        when=when,
        **extra,
    )


def rank(*reports: pytest.TestReport, failed: Failure | None = None, **given: Any) -> Outcome:
    """What a rank answers; phases that are not given passed."""
    told = {one.when: one for one in reports}
    every: list[Any] = [told.get(when, report(when)) for when in PHASES]
    if any(one.when == "setup" and not one.passed for one in reports):
        every = [one for one in every if one.when != "call"]
    return Outcome(reports=tuple(map(sent, every)), failure=failed, groups={}, fired=(), **given)


def sent(one: Any) -> dict[str, Any]:
    """As pytest sends a report; the object itself comes out at the other end."""
    return {**vars(one), "$report_type": type(one).__name__, "itself": one}


def failing(text: str, when: Phase = "call", **given: Any) -> Outcome:
    told = failure(text=text, phase=when, **given)
    return rank(report(when, "failed", f"traceback of {text}"), failed=told)


def merged(
    *outcomes: Outcome | None, verdict: Verdict | None = None, xfail: str | None = None, **run: Any
) -> list[Any]:
    given = {number: one for number, one in enumerate(outcomes) if one is not None}
    frame = Frame(item(), lambda data: data["itself"], 100.0, 2.5, xfail)
    return merge(frame, Run(started=0.0, outcomes=given, **run), verdict)


def ends(reports: Sequence[Any]) -> list[tuple[str, str]]:
    return [(one.when, one.outcome) for one in reports]


def the_failure(reports: Sequence[Any]) -> Any:
    (one,) = [each for each in reports if each.failed]
    return one


PASSED = [("setup", "passed"), ("call", "passed"), ("teardown", "passed")]
CALL_FAILED = [("setup", "passed"), ("call", "failed"), ("teardown", "passed")]


def test_all_passed() -> None:
    reports = merged(rank(), rank())
    assert ends(reports) == PASSED
    assert reports[1].duration == 2.5  # what it took here, not in one of the ranks


@pytest.mark.parametrize(
    ("second", "read"),
    [
        (rank(), 3),
        (rank(report("call", sections=[("Captured stdout call", "hello")])), 6),
        (rank(report("call", "skipped", ("f", 1, "Skipped: no"))), 6),
        (Outcome(rank().reports[:2], None, {}, ()), 5),
    ],
)
def test_ranks_that_passed_without_a_word_are_read_once(second: Outcome, read: int) -> None:
    loaded: list[Any] = []

    def load(data: Any) -> Any:
        loaded.append(data)
        return data["itself"]

    frame = Frame(item(), load, 100.0, 2.5)
    merge(frame, Run(started=0.0, outcomes={0: rank(), 1: second}), None)
    assert len(loaded) == read


def test_of_ranks_that_sent_times_alone_come_the_same_reports() -> None:
    times = ((100.0, 100.5, 0.5), (100.5, 101.0, 0.5), (101.0, 101.25, 0.25))
    timed = Outcome((), None, {}, (), passed=times)
    every = [
        report(when, start=one[0], stop=one[1], duration=one[2])
        for when, one in zip(PHASES, times, strict=True)
    ]
    assert [vars(one) for one in merged(timed, timed)] == [vars(one) for one in merged(rank(*every), timed)]
    assert ends(merged(timed, failing("ValueError: x"))) == CALL_FAILED
    said = the_failure(merged(timed, rank(report("call", "skipped", ("f", 1, "Skipped: no")))))
    assert said.longreprtext == "the ranks disagree: rank 0 passed; rank 1 skipped (no)"


def test_equal_output_is_shown_once_and_other_output_by_rank() -> None:
    same, mine = ("Captured stdout call", "hello"), ("Captured stderr call", "rank 1")
    reports = merged(
        rank(report("call", sections=[same])),
        rank(report("call", sections=[same, mine])),
        rank(report("call", sections=[same])),
    )
    assert reports[1].sections == [
        ("Captured stdout call (ranks 0, 1, 2)", "hello"),
        ("Captured stderr call (rank 1)", "rank 1"),
    ]


def test_the_culprit_comes_first_and_the_others_a_line_each() -> None:
    reports = merged(
        rank(),
        failing("RuntimeError: Connection closed", at=9.0, victim=True),
        failing("ValueError: late\nmore", at=12.0),
        failing("ValueError: early", at=11.0),
    )
    assert ends(reports) == CALL_FAILED
    assert the_failure(reports).longrepr == "rank 3: traceback of ValueError: early"
    assert the_failure(reports).sections[0] == (
        "other ranks",
        "rank 1: victim: RuntimeError: Connection closed\nrank 2: ValueError: late\nrank 0: passed",
    )


def test_a_culprit_alone_has_no_others() -> None:
    assert the_failure(merged(failing("a"), failing("b", at=10.05))).sections == [
        ("other ranks", "rank 1: b")
    ]


@pytest.mark.parametrize(
    ("failures", "culprit"),
    [
        ({2: failure(at=10.0), 1: failure(at=10.05)}, 1),
        ({2: failure(at=10.0), 1: failure(at=10.2)}, 2),
        ({2: failure(at=10.0, victim=True), 1: failure(at=99.0)}, 1),
        ({2: failure(at=10.0, victim=True), 3: failure(at=10.01, victim=True)}, 2),
    ],
)
def test_who_failed_first(failures: dict[int, Failure], culprit: int) -> None:
    assert first_failure(failures) == culprit


def skipped(reason: str, when: Phase = "call") -> Outcome:
    return rank(report(when, "skipped", ("test_file.py", 3, f"Skipped: {reason}")))


def xfailed(reason: str = "known") -> Outcome:
    return rank(report("call", "skipped", "trace", wasxfail=reason))


def test_all_skipped_also_for_different_reasons() -> None:
    for when in ("setup", "call"):
        expected = [one for one in PASSED if one[0] != "call" or when == "call"]
        expected = [(name, "skipped" if name == when else end) for name, end in expected]
        assert ends(merged(skipped("a", when), skipped("b", when))) == expected


def test_all_xfailed() -> None:
    reports = merged(xfailed(), xfailed())
    assert (reports[1].outcome, reports[1].wasxfail) == ("skipped", "known")


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        (rank(), skipped("no GPU"), "rank 0 passed; rank 1 skipped (no GPU)"),
        (xfailed(), rank(), "rank 0 xfailed; rank 1 passed"),
        (
            xfailed(),
            rank(report("call", wasxfail="known")),
            "rank 0 xfailed; rank 1 xpassed",
        ),
        (xfailed(), skipped("no"), "rank 0 xfailed; rank 1 skipped (no)"),
    ],
)
def test_ranks_that_disagree_fail(one: Outcome, two: Outcome, said: str) -> None:
    reports = merged(one, two)
    assert ends(reports) == CALL_FAILED
    assert the_failure(reports).longrepr == f"the ranks disagree: {said}"


def test_ranks_that_disagree_in_setup_have_no_call() -> None:
    reports = merged(rank(), skipped("no", "setup"))
    assert ends(reports) == [("setup", "failed"), ("teardown", "passed")]
    assert reports[0].longrepr == "the ranks disagree: rank 0 passed; rank 1 skipped (no)"


def test_failures_of_setup_and_teardown_keep_their_phase() -> None:
    reports = merged(failing("a", "setup"), failing("b", "setup"))
    assert ends(reports) == [("setup", "failed"), ("teardown", "passed")]
    reports = merged(rank(), failing("a", "teardown"))
    assert ends(reports) == [("setup", "passed"), ("call", "passed"), ("teardown", "failed")]


def test_a_report_that_a_plugin_added_is_passed_on() -> None:
    class SubtestReport(pytest.TestReport):
        pass

    extra: Any = SubtestReport("n", ("f", 0, "n"), {}, "passed", None, "call")
    one = rank()
    reports = merged(Outcome((*one.reports, sent(extra)), None, {}, ()), rank())
    assert reports.count(extra) == 1


@pytest.mark.parametrize(
    ("run", "story"),
    [
        ({"exits": {1: 1}}, "rank 1 exited with status 1"),
        ({"exits": {1: 0}}, "rank 1 exited with status 0"),
        ({"exits": {1: -11}}, "rank 1 was ended by signal 11"),
        (
            {"unfinished": {1: "sleeping at a.py:3  test"}, "why_ended": "timeout"},
            "rank 1 was sleeping at a.py:3  test at the test's time-out",
        ),
        (
            {"unfinished": {1: "running at a.py:3  test"}, "why_ended": "grace"},
            "rank 1 was running at a.py:3  test when its time after the first failure was over",
        ),
        ({"diagnosis": diagnosis()}, "rank 2 never entered all_reduce #1"),
        (
            {"diagnosis": diagnosis("crashed", guilty=(1,)), "exits": {1: -9, 2: 3}},
            "rank 2 never entered all_reduce #1\nrank 2 exited with status 3",
        ),
    ],
)
def test_what_befell_a_rank_is_told(run: dict[str, Any], story: str) -> None:
    reports = merged(rank(), None, **run)
    assert ends(reports) == CALL_FAILED
    assert the_failure(reports).longrepr == story


def test_a_rank_whose_protocol_broke_fails_the_test() -> None:
    told = rank(failed=failure(type="Exit", text="Exit: enough"), error="Exit: enough")
    assert the_failure(merged(rank(), told)).longrepr == "rank 1: Exit: enough"
    unsent = Outcome((), None, {}, (), error="its reports can't be sent: TypeError: x")
    assert the_failure(merged(rank(), unsent)).longrepr == "rank 1: its reports can't be sent: TypeError: x"


def test_the_traceback_of_a_culprit_comes_with_the_diagnosis() -> None:
    reports = merged(failing("ValueError: bad"), None, diagnosis=diagnosis("raised", guilty=(0,)))
    assert the_failure(reports).longrepr == "rank 0: traceback of ValueError: bad"
    assert the_failure(reports).sections[0] == (
        "lockstep",
        "rank 2 never entered all_reduce #1\nrank 0: ValueError: bad",
    )


def test_a_setup_that_failed_beside_ranks_that_wait_is_an_error() -> None:
    reports = merged(failing("ValueError: bad", "setup"), None, diagnosis=diagnosis("raised", guilty=(0,)))
    assert ends(reports) == [("setup", "failed"), ("teardown", "passed")]


WRONG = Verdict(False, "order", (1,), 0.1, "expected missing, got order of rank 1")


def test_another_outcome_than_the_expected_comes_before_all_else() -> None:
    told = the_failure(merged(rank(), None, diagnosis=diagnosis(), verdict=WRONG))
    assert told.longrepr == "expected missing, got order of rank 1\nrank 2 never entered all_reduce #1"
    told = the_failure(merged(rank(), failing("ValueError: bad"), verdict=WRONG))
    assert told.longrepr == "expected missing, got order of rank 1\nrank 1: ValueError: bad"
    assert ("traceback", "rank 1: traceback of ValueError: bad") in told.sections


def test_the_expected_divergence_passes() -> None:
    right = Verdict(True, "missing", (2,), 0.1)
    assert ends(merged(rank(), None, exits={1: -9}, diagnosis=diagnosis(), verdict=right)) == PASSED


def test_an_expected_fault_does_not_hide_a_failure() -> None:
    healthy = Verdict(True, "healthy", (), None)
    assert ends(merged(rank(), failing("a"), verdict=healthy)) == CALL_FAILED


def test_a_divergence_may_be_an_expected_failure() -> None:
    for given in ({"verdict": WRONG}, {"exits": {1: 1}}, {"diagnosis": diagnosis()}):
        reports = merged(rank(), None, xfail="known", **given)
        assert ends(reports) == [("setup", "passed"), ("call", "skipped"), ("teardown", "passed")]
        assert reports[1].wasxfail == "known"
    # What ranks reported themselves they have held against the marker already.
    assert ends(merged(failing("[XPASS(strict)]"), rank(), xfail="known")) == CALL_FAILED


def test_an_item_that_could_not_run() -> None:
    reports = errored(Frame(item(), lambda data: data["itself"], 0.0, 0.0), "no such kind")
    assert ends(reports) == [("setup", "failed"), ("teardown", "passed")]
    assert reports[0].longrepr == "no such kind"
