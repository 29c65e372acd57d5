"""Runs scripts under `python -m esper.lockstep run` and sees that nothing of them stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from tests.esper.lockstep.late import marked_processes
from tests.esper.lockstep.warm import warm_run
from tests.forked import MARK

SCHEMA = json.loads(files("esper.lockstep.report").joinpath("report.schema.json").read_text())

_HEAD = """\
import os, signal, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
x = torch.ones(4)
"""


@dataclass(frozen=True)
class Outcome:
    status: int
    report: dict[str, Any]
    text: str
    script: Path

    @property
    def verdict(self) -> str:
        verdict: str = self.report["verdict"]
        return verdict

    @property
    def diagnosis(self) -> dict[str, Any]:
        (diagnosis,) = self.report["diagnoses"]
        assert isinstance(diagnosis, dict)
        return diagnosis

    def at(self, mark: str) -> str:
        """`file:line` of the line that ends with this comment."""
        lines = self.script.read_text().splitlines()
        (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
        return f"{self.script}:{number}"


def launch(
    folder: Path,
    body: str,
    *arguments: str,
    nproc: int = 2,
    patience: float = 20.0,
    head: str = _HEAD,
    warm: bool = True,
    options: tuple[str, ...] = (),
) -> Outcome:
    """Run the script on `nproc` ranks; its report is valid, and no process of it is left.

    Not `warm`: as a user does, with interpreters that load torch first, which takes 2 to 3 s.
    """
    script, report = folder / "program.py", folder / "report.json"
    script.write_text(head + textwrap.dedent(body))
    all_options = ["--nproc", str(nproc), "--report", str(report), "--patience", str(patience), *options]
    run = warm_command if warm else command
    done = run(*all_options, "--", str(script), *arguments)
    assert report.is_file(), done.stderr
    document = json.loads(report.read_text())
    jsonschema.validate(document, SCHEMA)
    assert [end["rank"] for end in document["ranks"]] == list(range(nproc))
    return Outcome(done.returncode, document, done.stderr, script)


def command(
    *arguments: str, prepare: Callable[[], object] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m esper.lockstep run ...`; fails when a process that it started outlives it. `prepare` is
    called in its process before it begins.
    """
    with started(*arguments, prepare=prepare, **environment) as process:
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def warm_command(
    *arguments: str, within: float = 60.0, prepare: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same from a process that has torch loaded; `prepare` is a module's function."""
    marked = _marked()
    done = warm_run(arguments, marked, within, prepare)
    _see_it_gone(marked)
    return done


@contextmanager
def started(
    *arguments: str, prepare: Callable[[], object] | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """The same under way; when the block is left it has ended, and its ranks with it."""
    marked = _marked()
    with subprocess.Popen(
        [sys.executable, "-m", "esper.lockstep", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**marked, **environment},
        preexec_fn=prepare,  # noqa: PLW1509  nothing but system calls
    ) as process:
        try:
            yield process
        finally:
            process.kill()
    _see_it_gone(marked)


def _marked() -> dict[str, str]:
    return {**os.environ, MARK: uuid.uuid4().hex, "OMP_NUM_THREADS": "1"}


def _see_it_gone(environment: Mapping[str, str]) -> None:
    # Who ends in its parent's stead, because that was killed, may do so a moment later.
    end = time.monotonic() + 5.0
    while (left := left_behind(environment)) and time.monotonic() < end:
        time.sleep(0.01)
    assert left == []


def left_behind(environment: Mapping[str, str]) -> list[str]:
    """The command lines of living processes with this mark."""
    found = []
    for pid in marked_processes(f"{MARK}={environment[MARK]}"):
        with suppress(OSError):  # gone meanwhile
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
