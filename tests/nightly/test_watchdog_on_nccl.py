"""The watchdog of a job on NCCL: one rank a GPU, so it takes two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.nightly
SCRIPT = Path(__file__).parent.parent.parent / "examples" / "watchdog.py"
SECONDS = 180


def run(*options: str) -> tuple[int, str]:
    ranks = min(torch.cuda.device_count(), 4)
    if ranks < 2:
        pytest.skip(f"NCCL takes one GPU a rank, and torch sees {ranks}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*launch, str(SCRIPT), "--backend", "nccl", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    return done.returncode, done.stderr


def test_a_healthy_job_hears_nothing() -> None:
    status, said = run()
    assert (status, "lockstep" in said) == (0, False), said


def test_a_skipped_barrier_is_named_and_every_rank_ends() -> None:
    status, said = run("--break", "skip", "--action", "exit")
    assert status != 0
    assert said.count("lockstep: ") == 1, said
    assert "barrier #10" in said
    assert "is in all_reduce #10" in said
    assert "exitcode  : 3 " in said


# The one that skips waits for its gradients' stream, the others in a barrier, which waits for one, too.
@pytest.mark.parametrize("fault", ["skip", "sleep", "stop"])
def test_every_rank_raises_out_of_its_wait_for_a_stream(fault: str) -> None:
    status, said = run("--break", fault, "--patience", "5")
    assert status != 0
    assert said.count("lockstep: ") == 1, said
    assert "can't be made to raise" not in said
    ranks = min(torch.cuda.device_count(), 4)
    assert [said.count(f"[rank{rank}]: esper.lockstep.errors.LockstepError: ") for rank in range(ranks)] == [
        1
    ] * ranks, said
    assert "exitcode  : 1 " in said
