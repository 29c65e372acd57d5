"""Jobs whose ranks watch themselves, forked from a process that has torch loaded.

As under torchrun the store is nobody's rank: it lives in the process that starts them, which waits for all
and ends those that are left once one has failed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from tests.esper.lockstep.late import evidence, marked_processes
from tests.esper.lockstep.warm import LOADED
from tests.forked import MARK, Program, be_alone, forkserver, own_signals
from tests.mounts import mount_own

# torchrun gives those that it ends 30 s before it kills them; here nobody has anything to save.
_BETWEEN_LOOKS, _REAPED_AFTER = 0.02, 0.3
_OTHERS_END_WITHIN, _TERMINATED_WITHIN = 12.0, 1.0
PATIENCE = 60.0  # of jobs whose fault is proved

_HEAD = """\
import os, select, signal, sys, threading, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from esper import lockstep
from tests.esper.lockstep.watchdog.notes import note
{hosts}
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
dog = lockstep.start({start})
note.begin(rank, {together})
dist.barrier()
x = torch.ones(4)
def main():
"""
# A host is what processes have in common that see each other.
_HOSTS = """\
from esper.lockstep.watchdog import meeting
meeting.host = lambda: f"host{int(os.environ['RANK']) // {per_host}}"
meeting.socket.gethostname = meeting.host
"""
_TAIL = """
try:
    main()
except BaseException as error:
    note.error(error)
    raise
"""


@dataclass(frozen=True)
class Job:
    """One that has ended."""

    folder: Path
    script: Path
    statuses: tuple[int, ...]  # by rank, as subprocess has them
    out: tuple[str, ...]
    err: tuple[str, ...]

    def notes(self, name: str) -> dict[int, Any]:
        """What the ranks noted under this name."""
        return {
            int(path.suffix[1:]): json.loads(path.read_text()) for path in self.folder.glob(f"note-{name}.*")
        }

    @cached_property
    def said(self) -> str:
        """All of lockstep's own, without the lines of tracebacks."""
        lines = "".join(self.err).splitlines()
        blocks, inside = [], False
        for line in lines:
            inside = line.startswith("lockstep: ") or (inside and line.startswith("  "))
            if inside:
                blocks.append(line)
        return "\n".join(blocks)

    @property
    def run_folders(self) -> set[Path]:
        """Where the ranks kept their ledgers."""
        return {Path(note) for note in self.notes("folder").values() if note}

    def line(self, mark: str) -> str:
        """`file.py:line` of the line that ends with this comment."""
        lines = self.script.read_text().splitlines()
        (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
        return f"{self.script.name}:{number}"


def job(
    folder: Path,
    body: str,
    *,
    ranks: int = 3,
    start: str = f"patience={PATIENCE}",
    head: str = _HEAD,
    per_host: int = 0,
    within: float = 60.0,
    meanwhile: Callable[[Path], object] | None = None,
    shown: bool = True,
    **environment: str,
) -> Job:
    """Run the body's function on each rank; nobody of it is left. `meanwhile` gets its folder, in which
    `pids` lies once all have begun. `per_host`: so many ranks on each host, which has a folder of its own;
    by default all on this one.
    """
    folder.mkdir(exist_ok=True)
    script = folder / "program.py"
    whole = textwrap.dedent(body)
    if head is _HEAD:
        whole = textwrap.indent(whole, "    ") + _TAIL
    parts = {"hosts": "", "together": "world", "start": start}
    if per_host:
        place = f"{str(folder)!r} + '/' + meeting.host()"
        parts = {
            "hosts": _HOSTS.replace("{per_host}", str(per_host)),
            "together": f"len([one for one in range(world) if one // {per_host} == rank // {per_host}])",
            "start": f"{start}, run_dir={place}",
        }
    for name, part in parts.items():
        head = head.replace(f"{{{name}}}", part)
    script.write_text(head + whole)
    marked = {**os.environ, MARK: uuid.uuid4().hex, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryFile("w+") as output:
        server = forkserver(*LOADED)
        program = Program(_be_agent, [str(folder), str(ranks)], marked, os.getcwd())
        agent = server.start(program, output.fileno(), output.fileno())
        if meanwhile is not None:
            meanwhile(folder)
        doing = ""
        try:
            status = agent.wait(within)
        except subprocess.TimeoutExpired:
            doing = evidence(f"{MARK}={marked[MARK]}")
            agent.send_signal(signal.SIGKILL)
            status = agent.wait(within)
        output.seek(0)
        told = output.read()
    out, err = (
        tuple((folder / f"{name}.{rank}").read_text(errors="replace") for rank in range(ranks))
        for name in ("out", "err")
    )
    for rank in range(ranks if shown else 0):  # what pytest shows of a test that fails
        sys.stdout.write(f"-- rank {rank}\n{out[rank]}{err[rank]}")
    if status != 0:
        raise subprocess.TimeoutExpired([str(script)], within, "\n".join([doing, told]))
    left = _left(marked[MARK])
    assert left == [], left
    return Job(folder, script, tuple(json.loads((folder / "ends").read_text())), out, err)


def _left(mark: str) -> list[int]:
    end = time.monotonic() + 5.0
    while (left := marked_processes(f"{MARK}={mark}")) and time.monotonic() < end:
        time.sleep(0.01)
    return left


def pids(folder: Path) -> list[int]:
    """The ranks' processes, once all have begun to watch."""
    while not (folder / "pids").exists() or len(list(folder.glob("note-folder.*"))) < len(_pids(folder)):
        time.sleep(0.01)
    return _pids(folder)


def _pids(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def wait_for(folder: Path, name: str, count: int = 1) -> None:
    """Until so many ranks have noted something under this name."""
    while len(list(folder.glob(f"note-{name}.*"))) < count:
        time.sleep(0.01)


def take_away(done: Job) -> None:
    """The folders that a verdict leaves."""
    for folder in done.run_folders:
        shutil.rmtree(folder, ignore_errors=True)


def private(folder: Path) -> bool:
    """Whether nobody else may enter or read."""
    paths = [folder, *folder.iterdir()]
    return all(not stat.S_IMODE(path.lstat().st_mode) & 0o077 for path in paths)


def _be_agent(arguments: Sequence[str]) -> NoReturn:
    """In the forked process: what torchrun's agent does."""
    folder, ranks = Path(arguments[0]), int(arguments[1])
    own_signals()
    mount_own()
    listener = socket.create_server(("127.0.0.1", 0))
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listener.getsockname()[1]),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "ESPER_TEST_NOTES": str(folder),
    }
    children = [
        _fork(folder, {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)
    ]
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(
        "127.0.0.1", listener.getsockname()[1], is_master=True, wait_for_workers=False,
        master_listen_fd=listener.detach(), timeout=timedelta(seconds=60),
    )  # fmt: skip
    unfinished = folder / "pids.unfinished"
    unfinished.write_text(" ".join(map(str, children)))
    unfinished.rename(folder / "pids")
    ends = _wait(children)
    (folder / "ends").write_text(json.dumps([ends[pid] for pid in children]))
    del store
    os._exit(0)


def _wait(children: Sequence[int]) -> dict[int, int]:
    ends: dict[int, int] = {}
    seen: dict[int, float] = {}
    failed_at: float | None = None
    while len(ends) < len(children):
        time.sleep(_BETWEEN_LOOKS)
        for child in set(children) - ends.keys():
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            # How a process has ended can be read by others only until it is reaped.
            if time.monotonic() > seen.setdefault(child, time.monotonic()) + _REAPED_AFTER:
                pid, status = os.waitpid(child, 0)
                ends[pid] = os.waitstatus_to_exitcode(status)
                if ends[pid] and failed_at is None:
                    failed_at = time.monotonic()
        if failed_at is not None:
            for number, after in ((signal.SIGTERM, 0.0), (signal.SIGKILL, _TERMINATED_WITHIN)):
                if time.monotonic() > failed_at + _OTHERS_END_WITHIN + after:
                    for child in set(children) - ends.keys():
                        os.kill(child, number)
    return ends


def _fork(folder: Path, environment: dict[str, str]) -> int:
    if (pid := os.fork()) == 0:
        for number, name in ((1, "out"), (2, "err")):
            with (folder / f"{name}.{environment['RANK']}").open("wb") as file:
                os.dup2(file.fileno(), number)
        be_alone(environment)
        sys.argv = [str(folder / "program.py")]
        sys.path.insert(0, str(Path(__file__).parents[4]))
        line = f"import runpy; runpy.run_path({sys.argv[0]!r}, run_name='__main__')"
        failed = ctypes.pythonapi.PyRun_SimpleString(line.encode())
        ctypes.pythonapi.Py_Exit(1 if failed else 0)
    return pid
