"""`program_life.py` under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "program_life.py"


@contextmanager
def torchrun(
    folder: Path, *words: str, ranks: int, restarts: int = 0, program: Path = PROGRAM
) -> Iterator[subprocess.Popen[bytes]]:
    """The agent of a job of `ranks`, which writes to FOLDER/output; ended, with its ranks, on leaving."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    options = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output").open("wb") as output:
        agent = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, str(program), str(folder), *words],
            env={**os.environ, "PYTHONPATH": path, **quiet},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield agent
        finally:
            agent.terminate()  # which it passes on to its ranks
            agent.wait(60)


def output(folder: Path) -> str:
    """What the job has written so far."""
    return (folder / "output").read_text(errors="replace")


def ends(folder: Path) -> dict[str, str]:
    """What each rank noted at the end."""
    return {note.name: note.read_text() for note in folder.glob("end-*")}
