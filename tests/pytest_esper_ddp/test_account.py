"""What is said of a run in JUnit's properties and in the table's row."""

from __future__ import annotations

import pytest
import torch

from pytest_esper_ddp.controller.merge import Frame, merge
from pytest_esper_ddp.controller.run import Run
from pytest_esper_ddp.report.account import Row, give_account, row_in
from pytest_esper_ddp.verdict import Verdict
from pytest_esper_ddp.wire.messages import Failure, Outcome
from tests.pytest_esper_ddp.plans import SCENARIO, diagnosis, failure, item


def outcome(failed: Failure | None = None, **given: object) -> Outcome:
    return Outcome((), failed, {}, (), **given)  # type: ignore[arg-type]


def ended(**given: object) -> Run:
    return Run(started=1.0, ended=3.5, **given)  # type: ignore[arg-type]


def told(run: Run, verdict: Verdict | None = None) -> tuple[dict[str, str], Row | None]:
    reports = merge(Frame(item(), lambda data: data, 0.0, 1.0), run, verdict) or [_passed()]
    give_account(reports, SCENARIO, run, verdict)
    properties = reports[-1].user_properties
    assert all(report.user_properties == properties for report in reports)
    return dict(properties), row_in(reports[-1])


def _passed() -> pytest.TestReport:
    return pytest.TestReport(
        "test_file.py::test_it", ("test_file.py", 0, "test_it"), {}, "passed", None, "call"
    )


@pytest.mark.parametrize(
    ("run", "kind", "rank"),
    [
        (ended(outcomes={0: outcome()}), "healthy", None),
        (ended(diagnosis=diagnosis("mismatch", (1, 3))), "mismatch", "1, 3"),
        (ended(exits={2: -9}), "exited", "2"),
        (ended(why_ended="timeout", unfinished={1: "running", 3: "asleep"}), "timeout", "1, 3"),
        (
            ended(
                outcomes={0: outcome(failure(victim=True)), 2: outcome(failure(at=11.0))},
                unfinished={1: "waiting"},
                why_ended="grace",
            ),
            "failed",
            "2",
        ),
    ],
)
def test_properties_say_what_went_wrong_and_where(run: Run, kind: str, rank: str | None) -> None:
    expected = {"ddp_world_size": "4", "ddp_kind": kind, "ddp_rank": rank, "ddp_seconds": "2.500"}
    if rank is None:
        del expected["ddp_rank"]
    assert told(run) == (expected, None)


def test_an_expected_divergence_counts_from_the_fault() -> None:
    properties, row = told(
        ended(diagnosis=diagnosis(), outcomes={1: outcome(notes=("a note",))}),
        Verdict(True, "missing", (2,), 0.25),
    )
    assert properties == {
        "ddp_world_size": "4",
        "ddp_kind": "missing",
        "ddp_rank": "2",
        "ddp_seconds": "0.250",
    }
    assert row == Row("it", "none", "missing", "2", "0.25", passed=True, notes=["a note"])


def test_what_ranks_record_is_told_once_where_it_reads_alike() -> None:
    run = ended(
        outcomes={
            rank: Outcome(({"user_properties": [("norms", torch.ones(2)), ("rank", rank)]},), None, {}, ())
            for rank in (0, 1)
        }
    )
    report = _passed()
    give_account([report], SCENARIO, run, None)
    assert [(name, str(value)) for name, value in report.user_properties[:3]] == [
        ("norms", "tensor([1., 1.])"),
        ("rank", "0"),
        ("rank", "1"),
    ]
