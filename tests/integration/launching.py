"""`program_life.py` under torchrun, whose agent and ranks are forked from a process that has loaded torch."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tests.esper.lockstep.warm import LOADED
from tests.forked import MARK, Program, Started, forkserver
from tests.spares import be_interpreter, keep_spares

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "program_life.py"
# Further attempts start interpreters.
_SPARE_ATTEMPTS = 3


@contextmanager
def torchrun(
    folder: Path, *words: str, ranks: int, restarts: int = 0, program: Path = PROGRAM
) -> Iterator[Started]:
    """The agent of a job of `ranks`, which writes to FOLDER/output; ended, with its ranks, on leaving."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    options = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(ranks * min(restarts + 1, _SPARE_ATTEMPTS)), *options, str(program), str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": path, **quiet, MARK: uuid.uuid4().hex}
    with (folder / "output").open("wb") as output:
        agent_program = Program(_be_agent, arguments, environment, os.getcwd())
        agent = forkserver(*LOADED).start(agent_program, output.fileno(), output.fileno())
    try:
        yield agent
    finally:
        agent.send_signal(signal.SIGTERM)  # which it passes on to its ranks
        agent.wait(60)


def _be_agent(arguments: Sequence[str]) -> NoReturn:
    spares, *options = arguments
    keep_spares(int(spares))
    be_interpreter([sys.executable, "-m", "torch.distributed.run", *options])


def output(folder: Path) -> str:
    """What the job has written so far."""
    return (folder / "output").read_text(errors="replace")


def ends(folder: Path) -> dict[str, str]:
    """What each rank noted at the end."""
    return {note.name: note.read_text() for note in folder.glob("end-*")}
