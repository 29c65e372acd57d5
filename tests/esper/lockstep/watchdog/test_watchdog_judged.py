"""Where somebody outside watches and ends a job at a verdict, `lockstep.start()` leaves that to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from esper import lockstep
from pytest_esper_ddp.handle import DDP
from tests.esper.lockstep.launching import launch


def test_under_run_it_does_nothing(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        from esper import lockstep
        with lockstep.start(patience=1) as dog:
            assert not dog.running
            dist.all_reduce(x)
        dist.all_reduce(x)
        """,
    )
    assert (outcome.status, outcome.verdict, outcome.text) == (0, "clean", "")


MODES = [
    pytest.param(mode, marks=pytest.mark.ddp(2, backend="gloo", lockstep=mode))
    for mode in ("enforce", "observe", "off")
]


@pytest.mark.parametrize("mode", MODES)
def test_in_a_test_it_watches_where_no_verdict_ends_that(
    ddp: DDP, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    dog = lockstep.start()
    dist.all_reduce(torch.ones(1))
    assert dog.running == (mode != "enforce")
    assert capfd.readouterr().err == ""
