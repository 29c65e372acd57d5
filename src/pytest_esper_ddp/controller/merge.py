"""N ranks' reports of one item become one report a phase: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from esper.lockstep.proof.finding import ranks_text
from pytest_esper_ddp.controller.run import Run
from pytest_esper_ddp.verdict import Verdict
from pytest_esper_ddp.wire.messages import Failure, Finalised, Outcome

Phase = Literal["setup", "call", "teardown"]
PHASES: tuple[Phase, ...] = ("setup", "call", "teardown")
# Failures this close together are one event: the lowest rank then stands for it.
_TOGETHER = 0.1


@dataclass(frozen=True)
class Frame:
    """What every report of an item needs, and how to make one from a rank's."""

    item: pytest.Item
    load: Callable[[Mapping[str, Any]], Any]
    started: float  # epoch seconds
    seconds: float
    xfail: str | None = None  # the reason, where the item is expected to fail however it does


def merge(frame: Frame, run: Run, verdict: Verdict | None) -> list[Any]:
    """The reports of the item, in phase order."""
    if verdict is None and _passed_plainly(run):
        # Most tests: the lowest rank's reports stand for all, and the others' need not even be read.
        _, call, _ = reports = _reports(frame, run.outcomes[min(run.outcomes)])
        call.duration = frame.seconds
        return reports
    by_rank = {rank: _reports(frame, one) for rank, one in run.outcomes.items()}
    if run.broken is not None:  # our bug: neither a pass nor the failure that a test may expect
        return _failed(
            frame, run, by_rank, f"inconclusive: lockstep itself failed\n{run.broken}{_story(run, by_rank)}"
        )
    if verdict is not None and verdict.problem:
        return _excused(frame, _unexpected(frame, run, by_rank, verdict.problem))
    if verdict is not None and verdict.outcome != "healthy":
        return [_report(frame, when, "passed") for when in PHASES]  # the divergence that was expected
    broken = any(outcome.error is not None for outcome in run.outcomes.values())
    if run.exits or run.unfinished or run.diagnosis is not None or broken:
        return _excused(frame, _failed(frame, run, by_rank, _story(run, by_rank)))
    return _agreed(frame, run, by_rank)


def _passed_plainly(run: Run) -> bool:
    """Whether every rank has passed each phase without a word."""
    if run.exits or run.unfinished or run.diagnosis is not None or run.broken is not None:
        return False
    return all(map(_without_a_word, run.outcomes.values()))


def _without_a_word(outcome: Outcome) -> bool:
    if outcome.failure or outcome.error:
        return False
    if outcome.passed is not None:
        return True
    return [data.get("when") for data in outcome.reports] == list(PHASES) and all(
        data.get("$report_type") == "TestReport"
        and data["outcome"] == "passed"
        and not data["sections"]
        and "wasxfail" not in data
        for data in outcome.reports
    )


def _reports(frame: Frame, outcome: Outcome) -> list[Any]:
    """What a rank has reported."""
    if outcome.passed is None:
        return [frame.load(data) for data in outcome.reports]
    item = frame.item
    keywords: dict[str, Literal[1]] = dict.fromkeys(item.keywords, 1)
    return [
        pytest.TestReport(
            item.nodeid,
            item.location,
            keywords.copy(),
            "passed",
            None,
            when,
            duration=duration,
            start=start,
            stop=stop,
        )
        for when, (start, stop, duration) in zip(PHASES, outcome.passed, strict=True)
    ]


def _excused(frame: Frame, reports: list[Any]) -> list[Any]:
    """What ranks could not report themselves is an expected failure, too, where the item says so."""
    for report in reports:
        if report.failed and frame.xfail is not None:
            report.outcome, report.wasxfail = "skipped", frame.xfail
    return reports


def _agreed(frame: Frame, run: Run, by_rank: Mapping[int, Sequence[Any]]) -> list[Any]:
    """Every rank reported: phase by phase, if they say the same."""
    merged: list[Any] = []
    for when in PHASES:
        reports = {
            rank: report
            for rank, ones in by_rank.items()
            for report in ones
            if type(report) is pytest.TestReport and report.when == when
        }
        merged += _extras(by_rank, when)
        if not reports:
            continue
        if any(report.failed for report in reports.values()):
            merged.append(_culprit_report(frame, run, reports, when))
        elif len({_end(report)[0] for report in reports.values()}) > 1:
            merged.append(_report(frame, when, "failed", _disagreement(reports)))
        else:
            report = reports[min(reports)]
            report.sections = _sections(reports)
            if when == "call":
                report.duration = frame.seconds
            merged.append(report)
        if when == "setup" and merged[-1].failed:
            break  # ranks that went on to the call were not in step with the others
    if merged and merged[-1].when != "teardown":
        merged.append(_report(frame, "teardown", "passed"))
    return merged


def _extras(by_rank: Mapping[int, Sequence[Any]], when: str) -> list[Any]:
    """Reports that a plugin added, a subtest's for one: what ranks say of the same one is one report."""
    alike: dict[tuple[Any, ...], dict[int, Any]] = {}
    for rank, ones in by_rank.items():
        seen: Counter[tuple[Any, ...]] = Counter()
        for report in ones:
            if type(report) is pytest.TestReport or getattr(report, "when", None) != when:
                continue
            key = type(report), str(getattr(report, "context", ""))
            seen[key] += 1
            alike.setdefault((*key, seen[key]), {})[rank] = report
    return [_extra(reports) for reports in alike.values()]


def _extra(reports: Mapping[int, Any]) -> Any:
    failed = [rank for rank, report in reports.items() if report.failed]
    report = reports[min(failed or reports)]
    if failed:
        _prefix(report, f"rank {min(failed)}: ")
    elif len({_end(one)[0] for one in reports.values()}) > 1:
        report.outcome, report.longrepr = "failed", _disagreement(reports)
    report.sections = _sections(reports)
    others = [f"rank {rank}: {' '.join(_end(one))}" for rank, one in sorted(reports.items())]
    if failed and len(reports) > 1:
        report.sections.insert(0, ("all ranks", "\n".join(others)))
    return report


def _disagreement(reports: Mapping[int, pytest.TestReport]) -> str:
    told = "; ".join(f"rank {rank} {' '.join(_end(report))}" for rank, report in sorted(reports.items()))
    return f"the ranks disagree: {told}"


def _end(report: pytest.TestReport) -> tuple[str, ...]:
    """What a rank says of a phase, and why it was skipped."""
    reason = getattr(report, "wasxfail", None)
    if reason is not None:
        return ("xfailed" if report.skipped else "xpassed",)
    if report.skipped and isinstance(report.longrepr, tuple):
        return "skipped", f"({report.longrepr[2].removeprefix('Skipped: ')})"
    return (report.outcome,)


def _culprit_report(
    frame: Frame, run: Run, reports: Mapping[int, pytest.TestReport], when: Phase
) -> pytest.TestReport:
    """The report of the rank that failed first, the others a line each."""
    failures = {
        rank: outcome.failure
        for rank, outcome in run.outcomes.items()
        if outcome.failure is not None and outcome.failure.phase == when
    }
    failed = [rank for rank, report in reports.items() if report.failed]
    culprit = first_failure(failures) if failures else min(failed)
    report = reports[culprit]
    _prefix(report, f"rank {culprit}: ")
    report.sections = _sections(reports)
    others = [
        f"rank {rank}: {_one_line(failures[rank]) if rank in failures else _crash(reports[rank])}"
        for rank in sorted(failed)
        if rank != culprit
    ]
    passed = sorted(set(reports) - set(failed))
    if passed:
        others.append(f"{ranks_text(passed)}: passed")
    if others:
        report.sections.insert(0, ("other ranks", "\n".join(others)))
    return report


def first_failure(failures: Mapping[int, Failure]) -> int:
    """The culprit: the earliest failure that no peer's end has caused; within 100 ms the lowest rank."""
    own = {rank: failure for rank, failure in failures.items() if not failure.victim} or failures
    earliest = min(failure.at for failure in own.values())
    return min(rank for rank, failure in own.items() if failure.at - earliest < _TOGETHER)


def with_ends(frame: Frame, reports: list[Any], ends: Mapping[int, Finalised]) -> list[Any]:
    """The reports of an item after which ranks ended: what that raised is an error of its teardown."""
    report = end_of(frame, ends)
    if report is None:
        return reports
    passed = bool(reports) and reports[-1].when == "teardown" and reports[-1].passed
    return [*(reports[:-1] if passed else reports), report]


def end_of(frame: Frame, ends: Mapping[int, Finalised]) -> pytest.TestReport | None:
    """The report on ranks that could not finalise their fixtures; None where all could."""
    failures = {rank: end.failure for rank, end in ends.items() if end.failure is not None}
    if not failures:
        return None
    culprit = first_failure(failures)
    data = ends[culprit].report
    report: pytest.TestReport = (
        _report(frame, "teardown", "failed", failures[culprit].text) if data is None else frame.load(data)
    )
    _prefix(report, f"rank {culprit}: ")
    others = [f"rank {rank}: {_one_line(one)}" for rank, one in sorted(failures.items()) if rank != culprit]
    if others:
        report.sections.append(("other ranks", "\n".join(others)))
    return report


def _one_line(failure: Failure) -> str:
    text = failure.text.splitlines()[0] if failure.text else failure.type
    return ("victim: " if failure.victim else "") + text


def _failed(frame: Frame, run: Run, by_rank: Mapping[int, Sequence[Any]], story: str) -> list[Any]:
    """The item fails with `story`; where a rank failed for a reason of its own, its traceback comes with
    it.
    """
    failures = {
        rank: outcome.failure for rank, outcome in run.outcomes.items() if outcome.failure is not None
    }
    own = {rank: failure for rank, failure in failures.items() if not failure.victim}
    failed_setup = [rank for rank, failure in failures.items() if failure.phase == "setup"]
    when: Phase = "setup" if failed_setup and not own.keys() - set(failed_setup) else "call"
    last = {rank: one for rank, ones in by_rank.items() for one in ones if type(one) is pytest.TestReport}
    printed = _by_ranks(
        {
            rank: [*(last[rank].sections if rank in last else ()), *run.printed.get(rank, ())]
            for rank in sorted(last.keys() | run.printed.keys())
        }
    )
    report = None
    if own:
        culprit = first_failure(own)
        report = next(
            (one for one in by_rank[culprit] if type(one) is pytest.TestReport and one.failed), None
        )
        if report is not None and report.when == when:
            _prefix(report, f"rank {culprit}: ")
            report.sections = [("lockstep", story)] if run.diagnosis else [("ranks", story)]
        else:
            report = None
    if report is None:
        report = _report(frame, when, "failed", story)
    report.sections += printed
    before = [_report(frame, "setup", "passed")] if when == "call" else []
    return [*before, report, _report(frame, "teardown", "passed")]


def _unexpected(frame: Frame, run: Run, by_rank: Mapping[int, Sequence[Any]], problem: str) -> list[Any]:
    """Another outcome than the expected one: that comes first, the culprit's traceback among the sections."""
    reports = _failed(frame, run, by_rank, _story(run, by_rank))
    failed = next(report for report in reports if report.failed)
    if failed.longreprtext != _story(run, by_rank):
        failed.sections.insert(1, ("traceback", failed.longreprtext))
    failed.longrepr = f"{problem}\n{_story(run, by_rank)}".rstrip()
    failed.sections = [(name, text) for name, text in failed.sections if text != _story(run, by_rank)]
    return reports


def _story(run: Run, by_rank: Mapping[int, Sequence[Any]]) -> str:
    """What befell the ranks, the diagnosis first."""
    lines = [run.diagnosis.message] if run.diagnosis is not None else []
    guilty = set(run.diagnosis.guilty) if run.diagnosis is not None else set()
    for rank, code in sorted(run.exits.items()):
        if rank in guilty and run.diagnosis is not None and run.diagnosis.kind in ("crashed", "exited"):
            continue
        lines.append(
            f"rank {rank} {'was ended by signal ' + str(-code) if code < 0 else f'exited with status {code}'}"
        )
    if run.diagnosis is None:
        at_time_out = "at the test's time-out" + (f" ({run.shortened})" if run.shortened else "")
        why = {"timeout": at_time_out, "grace": "when its time after the first failure was over"}.get(
            run.why_ended or "", ""
        )
        lines += [f"rank {rank} was {where} {why}".rstrip() for rank, where in sorted(run.unfinished.items())]
    failures = {
        rank: outcome.failure for rank, outcome in run.outcomes.items() if outcome.failure is not None
    }
    lines += [f"rank {rank}: {_one_line(failure)}" for rank, failure in sorted(failures.items())]
    lines += [
        f"rank {rank}: {outcome.error}"
        for rank, outcome in sorted(run.outcomes.items())
        if outcome.error is not None and outcome.failure is None
    ]
    # Who is skipped enters nothing, and the others wait.
    lines += [
        f"rank {rank}: {' '.join(_end(report))}"
        for rank, reports in sorted(by_rank.items())
        for report in reports
        if type(report) is pytest.TestReport and report.skipped
    ]
    return "\n".join(lines)


def _crash(report: pytest.TestReport) -> str:
    """Of a rank whose first failure was in an earlier phase."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else report.longreprtext).partition("\n")[0]


def _prefix(report: pytest.TestReport, text: str) -> None:
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = text + crash.message
    elif isinstance(report.longrepr, str):
        report.longrepr = text + report.longrepr


def _sections(reports: Mapping[int, pytest.TestReport]) -> list[tuple[str, str]]:
    """The captured output, rank by rank; what is equal on all of them once."""
    return _by_ranks({rank: report.sections for rank, report in sorted(reports.items())})


def _by_ranks(spoken: Mapping[int, Sequence[tuple[str, str]]]) -> list[tuple[str, str]]:
    by_text: dict[tuple[str, str], list[int]] = {}
    for rank, sections in spoken.items():
        for name, text in sections:
            by_text.setdefault((name, text), []).append(rank)
    return [(f"{name} ({ranks_text(ranks)})", text) for (name, text), ranks in by_text.items()]


def _report(
    frame: Frame, when: Phase, outcome: Literal["passed", "failed", "skipped"], text: str | None = None
) -> pytest.TestReport:
    item = frame.item
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,
        longrepr=text,
        when=when,
        duration=frame.seconds if when == "call" else 0.0,
        start=frame.started,
        stop=frame.started + frame.seconds,
    )


def skipped(frame: Frame, reason: str) -> list[Any]:
    """The item is not for this session."""
    report = _report(frame, "setup", "skipped")
    report.longrepr = (str(frame.item.path), (frame.item.location[1] or 0) + 1, f"Skipped: {reason}")
    return [report, _report(frame, "teardown", "passed")]


def errored(frame: Frame, text: str) -> list[Any]:
    """The item could not be run at all: an error of its set-up."""
    return [_report(frame, "setup", "failed", text), _report(frame, "teardown", "passed")]
