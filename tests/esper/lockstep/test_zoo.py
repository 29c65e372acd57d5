"""Healthy programs that a naive watcher would accuse: under lockstep each is clean, however it is run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from esper.lockstep.run.launch import listening_socket, serve_store
from tests.esper.lockstep.launching import left_behind
from tests.esper.lockstep.warm import warm_run
from tests.forked import MARK

ZOO = Path(__file__).parent / "zoo"
_HEADER = re.compile(r"^# ranks: (\d+), patience: ([\d.]+)(, quick)?(?:, needs: (\w+))?$", re.MULTILINE)
_DONE = re.compile(r"DONE (\d+)")
_LONGEST = 150.0


@dataclass(frozen=True)
class Program:
    """One script of the zoo and what its header says."""

    path: Path
    ranks: int
    patience: float
    quick: bool
    needs: str | None


def _program(path: Path) -> Program:
    header = _HEADER.search(path.read_text())
    assert header is not None, f"{path.name} lacks the line '# ranks: N, patience: SECONDS'"
    return Program(path, int(header[1]), float(header[2]), header[3] is not None, header[4])


PROGRAMS = [_program(path) for path in sorted(ZOO.glob("[0-9]*.py"))]


@pytest.mark.parametrize("program", [one for one in PROGRAMS if one.quick], ids=lambda one: one.path.stem)
def test_a_healthy_program_is_clean(program: Program, tmp_path: Path) -> None:
    _runs_clean(program, tmp_path, warm=True)


@pytest.mark.stress
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.path.stem)
def test_it_is_clean_again_and_again_on_a_loaded_machine(program: Program, tmp_path: Path) -> None:
    with _busy_processors():
        for _ in range(3):
            _runs_clean(program, tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.path.stem)
def test_the_program_is_healthy_by_itself(program: Program) -> None:
    _skip_without(program)
    environment = _marked()
    with listening_socket() as listener:
        port = listener.getsockname()[1]
        processes = [
            subprocess.Popen(
                [sys.executable, str(program.path)],
                env={**environment, **_env(rank, program.ranks, port)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(program.ranks)
        ]
        store = serve_store(listener, program.ranks)
        try:
            told = [process.communicate(timeout=_LONGEST) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
            del store
    for rank, (process, (out, err)) in enumerate(zip(processes, told, strict=True)):
        # torch aborts now and then when a program that has ended well still holds a DDP object.
        assert process.returncode in (0, -6), err
        assert _DONE.findall(out) == [str(rank)], out + err
    assert left_behind(environment) == []


def _runs_clean(program: Program, tmp_path: Path, *, warm: bool = False) -> None:
    _skip_without(program)
    environment, path = _marked(), tmp_path / "report.json"
    path.unlink(missing_ok=True)
    words = [
        *("--nproc", str(program.ranks), "--patience", str(program.patience), "--report", str(path)),
        *("--", str(program.path)),
    ]
    if warm:
        run = warm_run(words, environment, _LONGEST)
    else:
        command = [sys.executable, "-m", "esper.lockstep", "run", *words]
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LONGEST, check=False
        )
    told = run.stdout + run.stderr
    assert path.exists(), told
    report = json.loads(path.read_text())
    assert report["diagnoses"] == [], told
    assert (run.returncode, report["verdict"]) == (0, "clean"), told
    assert sorted(_DONE.findall(run.stdout), key=int) == [str(rank) for rank in range(program.ranks)], told
    assert left_behind(environment) == []


def _skip_without(program: Program) -> None:
    if program.needs is not None and find_spec(program.needs) is None:
        pytest.skip(f"{program.needs} is not installed")


def _marked() -> dict[str, str]:
    """An environment by which every process of one run can be found again, its children's children too."""
    # No GPUs: what uses one where there is one, PowerSGD and Accelerate, wants one for each rank.
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: uuid.uuid4().hex}


def _env(rank: int, world_size: int, port: int) -> Mapping[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


@contextlib.contextmanager
def _busy_processors() -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
