"""A script that runs each program of a file on ranks of its own, under the supervisor of `run`.

The ranks are forked from here, where torch is loaded already, and are otherwise what `run` starts: some 0.3 s
a program in place of some seconds. One JSON report a line goes to the second file.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

import esper.lockstep.rank.__main__ as entry_point
from esper.lockstep.frames import INTERNAL
from esper.lockstep.proof.finding import Patience
from esper.lockstep.run import launch
from esper.lockstep.run.supervisor import Supervisor

PATIENCE, STOPPED, LONGEST = 3.0, 0.5, 40.0
_POLL = 0.004


def supervised(run_dir: Path, script: Path, world_size: int) -> dict[str, Any] | None:
    """The run's report; None in a rank. Its verdict may also be `stopped`, where all that is left are stopped
    ranks that nobody waits for, and `hung`, where ranks wait without end and without a diagnosis.
    """
    with launch.listening_socket() as listener:
        port = listener.getsockname()[1]
        pids = []
        for rank in range(world_size):
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                os.environ.update(_environment(rank, world_size, port))
                sys.argv = ["rank", str(run_dir), str(script)]
                return None
            pids.append(pid)
        supervisor = Supervisor(run_dir, pids, patience=Patience(PATIENCE, STOPPED), internal=INTERNAL)
        store = launch.serve_store(listener, world_size)
        codes, kept = _watch(supervisor, pids)
        del store
    verdict = kept or ("failed" if any(codes) else "clean")
    if supervisor.diagnosis is not None:
        verdict = "diverged"
    elif supervisor.broken is not None:
        verdict = "inconclusive"
    return supervisor.report(verdict).to_json()


def _watch(supervisor: Supervisor, pids: list[int]) -> tuple[list[int], str]:
    """Until a diagnosis, or until every rank has ended; how they ended, and what kept the others."""
    codes: dict[int, int] = {}
    until, kept = time.monotonic() + LONGEST, ""
    while len(codes) < len(pids) and not kept:
        for rank, pid in enumerate(pids):
            if rank not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    supervisor.ended(rank, codes[rank])
        now = time.monotonic()
        stopped = {rank: supervisor.stopped_since(rank) for rank in range(len(pids)) if rank not in codes}
        if supervisor.poll() is not None:
            break
        if stopped and all(since is not None and now - since > 2 * STOPPED for since in stopped.values()):
            kept = "stopped"  # and nobody waits for them
        elif now > until:
            kept = "hung"
        time.sleep(_POLL)
    supervisor.poll(final=not kept)
    for rank, pid in enumerate(pids):
        if rank not in codes:
            os.kill(pid, signal.SIGKILL)
            codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            supervisor.ended(rank, codes[rank])
    return [codes[rank] for rank in range(len(pids))], kept


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "ESPER_LOCKSTEP_PARENT": str(os.getppid()),
    }


_SCRIPT = """\
import pickle
import torch.distributed as dist
from tests.esper.lockstep.program_ranks import Rank
dist.init_process_group("gloo")
seed, run, checks = pickle.loads({program!r})
Rank(run, dist.get_rank(), seed, checks=checks).go()
dist.destroy_process_group()
"""


def main() -> None:
    programs = pickle.loads(Path(sys.argv[1]).read_bytes())
    out = Path(sys.argv[2])
    torch.set_num_threads(1)
    for program in programs:
        # No `with`: a rank leaves this function, too, and must not remove what its parent uses.
        folder = Path(tempfile.mkdtemp(prefix="lockstep.", dir="/dev/shm"))
        (folder / "program.py").write_text(_SCRIPT.format(program=pickle.dumps(program)))
        report = supervised(folder, folder / "program.py", len(program[1].programs))
        if report is None:
            break
        shutil.rmtree(folder)
        with out.open("a") as file:
            file.write(json.dumps(report) + "\n")
    else:
        return
    entry_point.main()  # in a rank, out of everything that is its parent's


if __name__ == "__main__":
    main()
