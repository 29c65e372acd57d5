"""The code in docs/ is run as it stands there, and its pages leave nothing out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper.lockstep.proof.finding import PRECEDENCE
from pytest_esper_ddp.faults.catalogue import CATALOGUE
from tests.pytest_esper_ddp.inner import inner_session

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of(page: str) -> str:
    """All Python blocks of a page, in order: they make one module."""
    return "\n\n".join(_BLOCK.findall((DOCS / page).read_text()))


@pytest.mark.parametrize("page", ["kinds.md", "faults.md"])
def test_every_example_passes(tmp_path: Path, page: str) -> None:
    source = code_of(page)
    examples = re.findall(r"^def (test_\w+)", source, re.MULTILINE)
    with inner_session(tmp_path) as inner:
        inner.file(source, f"test_{Path(page).stem}.py", head="")
        result = inner.run("-v", "-rA")
    assert result.status == 0, result.text
    assert len(result.passed) == len(result.ends) == len(examples), result.text
    assert not result.skipped


@pytest.mark.parametrize("page", ["growing.md", "training.md"])
def test_the_python_on_a_page_runs_from_top_to_bottom(tmp_path: Path, page: str) -> None:
    script = tmp_path / "page.py"
    script.write_text(code_of(page))
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_kind_of_diagnosis_has_an_example() -> None:
    assert set(re.findall(r'ddp_expect\("(\w+)"', code_of("kinds.md"))) == set(PRECEDENCE)


def test_every_kind_of_fault_is_in_the_table_and_every_family_has_an_example() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "faults.md").read_text(), re.MULTILINE)
    told = [kind for row in rows for kind in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(CATALOGUE)
    shown = set(re.findall(r'ddp_fault\("(\w+)"', code_of("faults.md")))
    assert {CATALOGUE[kind].family for kind in shown} == {spec.family for spec in CATALOGUE.values()}


def test_the_commands_on_training_run_from_top_to_bottom(tmp_path: Path) -> None:
    shell = re.findall(r"^```sh\n(.*?)^```", (DOCS / "training.md").read_text(), re.MULTILINE | re.DOTALL)
    python = f"{sys.executable} -W ignore -m"
    programs = {"esper": "esper", "torchrun": "torch.distributed.run"}
    head = "".join(f'{name}() {{ {python} {module} "$@"; }}\n' for name, module in programs.items())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euc", head + "\n".join(shell)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "goes on from small/checkpoints/epoch-000020.checkpoint" in done.stdout
    for run in ("small", "together", "esper-runs/digits-heuristic-1-1"):
        names = {path.name.partition(".tfevents")[0] for path in (tmp_path / run).iterdir()}
        assert names == {"log.jsonl", "events.out", "checkpoints", "run.png"}
