"""Programs that watch themselves, as a training job does, with one line and no test around it: the verdict
comes from the ranks' own threads, and each rank that is not guilty raises LockstepError where it is. On gloo:
nothing is raised yet in a thread that waits for a stream of a GPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from esper import lockstep
from esper.lockstep import LockstepError
from pytest_esper_ddp.handle import DDP

# A job has minutes, 300 s unless it says otherwise. What can be proved waits for none of them.
PATIENCE = 1.0


def train(ddp: DDP, steps: int) -> None:
    """Any program; the watchdog is its first line."""
    lockstep.start(PATIENCE, run_dir=ddp.shared_path)
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(16, 4).to(ddp.device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 16, device=ddp.device)).square().mean().backward()
        optimizer.step()
        dist.barrier()


@pytest.mark.ddp(backend="gloo", lockstep="observe")
def test_a_healthy_program_hears_nothing(ddp: DDP, capfd: pytest.CaptureFixture[str]) -> None:
    train(ddp, steps=20)
    assert capfd.readouterr().err == ""


@pytest.mark.ddp(backend="gloo", lockstep="observe")
@pytest.mark.ddp_fault("skip", rank=2, op="barrier", nth=2)
@pytest.mark.ddp_expect("watchdog", guilty=[2], raises=LockstepError, within=3.0)
def test_a_skipped_barrier(ddp: DDP) -> None:
    train(ddp, steps=10_000)


@pytest.mark.ddp(backend="gloo", lockstep="observe")
@pytest.mark.ddp_fault("sleep", rank=0, op="barrier", nth=2, seconds=60)
@pytest.mark.ddp_expect("watchdog", guilty=[0], raises=LockstepError, within=PATIENCE + 3.0)
def test_a_sleeping_rank(ddp: DDP) -> None:
    train(ddp, steps=10_000)


@pytest.mark.ddp(backend="gloo", lockstep="observe")
@pytest.mark.ddp_fault("stop", rank=0, op="barrier", nth=2)
@pytest.mark.ddp_expect("watchdog", guilty=[0], raises=LockstepError, within=PATIENCE + 3.0)
def test_a_stopped_rank(ddp: DDP) -> None:
    train(ddp, steps=10_000)
