"""What the examples say where something that they need is missing; that they pass is a step of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
_WITHOUT_SKLEARN = (
    "import sys, pytest; sys.modules['sklearn'] = None; sys.exit(pytest.main(['examples', '-q']))"
)


def test_missing_scikit_learn_is_one_sentence() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_SKLEARN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 4
    said = [line for line in (run.stdout + run.stderr).splitlines() if line]
    assert said == [
        "ERROR: the examples train on scikit-learn's bundled digits, and scikit-learn is not installed: "
        "pip install 'pytest-esper-ddp[train]'"
    ]
