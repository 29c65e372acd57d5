"""A divergence of a job under torchrun: it ends the job, and its log has the table once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from esper.distributed.telling import one_voice
from esper.errors import LifecycleDivergence
from tests.integration.launching import output, torchrun

RANKS = 2
LONG = 120.0


@pytest.mark.parametrize(
    ("guilty", "speaker"), [((2,), 0), ((0,), 1), ((0, 1, 3), 2), ((0, 1, 2, 3), 0), ((), 0)]
)
def test_the_first_rank_that_is_not_guilty_speaks(
    caplog: pytest.LogCaptureFixture, guilty: tuple[int, ...], speaker: int
) -> None:
    spoke = []
    for rank in range(4):
        caplog.clear()
        with pytest.raises(SystemExit) as ended, one_voice(rank, range(4)):
            raise LifecycleDivergence("the table", guilty=guilty, fields=())
        assert ended.value.code == 3
        if [(record.levelno, record.message) for record in caplog.records] == [(logging.ERROR, "the table")]:
            spoke.append(rank)
        else:
            assert not caplog.records
    assert spoke == [speaker]


def test_any_other_error_is_left_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), one_voice(0, (0, 1)):
        raise ZeroDivisionError


@pytest.mark.stress
def test_a_divergence_ends_the_job_and_is_told_once(tmp_path: Path) -> None:
    with torchrun(tmp_path, "diverge", ranks=RANKS) as job:
        assert job.wait(LONG) != 0
    told = "ranks disagree in the start of epoch 4: alpha of r0c0: 0.5 on rank 0; 1.0 on rank 1"
    assert output(tmp_path).count(told) == 1, output(tmp_path)
