"""Lockstep on a GPU: backwards that run in autograd's own threads, and NCCL, whose stream waits for a call.

NCCL refuses two ranks on one GPU, so several ranks are gloo's, with tensors on that GPU.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.lockstep.building import CHOICE
from esper.lockstep.rank import compiled

pytestmark = pytest.mark.nightly
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SECONDS = 180


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no GPU")


@pytest.fixture(params=["auto", "python"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled kernel, and with the one in Python."""
    if request.param == "auto" and not compiled.library_path().is_file():
        pytest.skip("no compiled kernel: python -m esper.lockstep build")
    monkeypatch.setenv(CHOICE, request.param)


def run(script: str, nproc: int, folder: Path) -> tuple[int, dict[str, Any], str]:
    report = folder / "report.json"
    options = ["--nproc", str(nproc), "--patience", "3", "--report", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "esper.lockstep", "run", *options, "--", str(HERE / script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    return done.returncode, json.loads(report.read_text()), done.stderr


def at(script: str, mark: str) -> str:
    lines = (HERE / script).read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    return f"{HERE / script}:{number}"


@pytest.mark.usefixtures("kernel")
def test_every_way_to_an_nccl_call_is_clean(tmp_path: Path) -> None:
    status, report, said = run("nccl_calls.py", 1, tmp_path)
    assert (status, report["verdict"], report["diagnoses"]) == (0, "clean", []), said


@pytest.mark.usefixtures("kernel")
def test_a_call_that_its_stream_waits_for_is_waited_for_and_holds_up_nobody() -> None:
    command = [sys.executable, "-m", "tests.nightly.nccl_records"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("backend", "nproc"), [("nccl", 1), ("gloo", 3)])
def test_healthy_training_is_clean(
    backend: str, nproc: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKEND", backend)
    monkeypatch.setenv("FAULT", "none")
    status, report, said = run("ddp_on_gpu.py", nproc, tmp_path)
    assert (status, report["verdict"], report["diagnoses"]) == (0, "clean", []), said


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("fault", "kind", "line"),
    [
        ("skip", "mismatch", "end"),
        ("raise", "raised", "raise"),
        ("other", "mismatch", "other"),
        ("sleep", "frozen", "sleep"),
        ("spin", "stalled", "spin"),
        ("drift", "drift", None),
    ],
)
def test_a_fault_is_named_at_its_line(
    fault: str, kind: str, line: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKEND", "gloo")
    monkeypatch.setenv("FAULT", fault)
    status, report, said = run("ddp_on_gpu.py", 3, tmp_path)
    assert (status, report["verdict"]) == (3, "diverged"), said
    (found,) = report["diagnoses"]
    assert (found["kind"], found["guilty"]) == (kind, [1]), said
    assert found["waiting"]["ranks"] == [0, 2]
    assert found["waiting"]["site"] == at("ddp_on_gpu.py", "step") or fault == "drift"
    if line is not None:
        assert found["guilty_at"]["1"]["site"] == at("ddp_on_gpu.py", line)
