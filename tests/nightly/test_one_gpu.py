"""What a machine with a single GPU can show: NCCL alone, and gloo between two ranks that share it.

NCCL refuses two ranks on one GPU, so its scenarios with several ranks are left to a machine with several.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.nightly

SECONDS = 180


@pytest.fixture(autouse=True)
def _gpu() -> None:
    """Skips where torch sees no GPU; ci/nightly, which counted one, makes that a failure."""
    if torch.cuda.is_available():
        return
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    reason = f"torch {torch.__version__} ({build}) sees no GPU"
    if os.environ.get("ESPER_NEED_GPU"):
        pytest.fail(f"nvidia-smi shows a GPU, but {reason}")
    pytest.skip(reason)


def run_ranks(size: int, backend: str, device: str, folder: Path) -> list[str]:
    """Runs rank.py in `size` processes and returns their outputs; fails when one fails or takes too long."""
    common = {**os.environ, "WORLD_SIZE": str(size), "BACKEND": backend, "DEVICE": device}
    command = [sys.executable, str(Path(__file__).with_name("rank.py"))]
    ranks = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "STORE": str(folder / "store")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    deadline = time.monotonic() + SECONDS
    try:
        outputs = [rank.communicate(timeout=max(0, deadline - time.monotonic()))[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for number, rank in enumerate(ranks):
        assert rank.returncode == 0, f"rank {number} ended with {rank.returncode}:\n{outputs[number]}"
    return outputs


def test_nccl_at_world_size_one(tmp_path: Path) -> None:
    (output,) = run_ranks(1, "nccl", "cuda:0", tmp_path)
    assert "rank 0 of 1: nccl on cuda:0 done" in output


def test_gloo_with_cuda_tensors_at_two_ranks(tmp_path: Path) -> None:
    outputs = run_ranks(2, "gloo", "cuda:0", tmp_path)
    assert [f"rank {rank} of 2: gloo on cuda:0 done" in output for rank, output in enumerate(outputs)] == [
        True,
        True,
    ]


RANDOM = """
import pytest, torch

@pytest.mark.ddp(world_size=2)
@pytest.mark.parametrize("number", range(3))
def test_draws(ddp, number):
    with open("drawn", "a") as file:
        print(torch.rand(2, device="cuda:0").tolist(), file=file)
"""


def test_each_pooled_test_draws_the_same_on_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "test_random.py").write_text(RANDOM)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_random.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout
    assert len(set((tmp_path / "drawn").read_text().splitlines())) == 1
