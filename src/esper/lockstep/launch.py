"""`python -m esper.lockstep run`: an unmodified env:// script on N ranks under the supervisor."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from esper.lockstep.diagnosis import Report
from esper.lockstep.finding import Patience
from esper.lockstep.frames import INTERNAL
from esper.lockstep.supervisor import Supervisor
from esper.lockstep.view import RankView

_POLL = 0.004
INCONCLUSIVE = 4
_SOFT_END = 0.1


@contextmanager
def run_directory() -> Iterator[Path]:
    """A private directory for the ledgers, in memory where there is /dev/shm; removed afterwards."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="lockstep.", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(
    command: Sequence[str], world_size: int, patience: float, show: Callable[[str], None]
) -> tuple[Report, int]:
    """Run `command` (script and arguments) on `world_size` ranks; the report, and the exit status for the
    shell.
    """
    with run_directory() as run_dir, listening_socket() as listener:
        port = listener.getsockname()[1]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "esper.lockstep.rank", str(run_dir), *command],
                env=_environment(rank, world_size, port),
                process_group=0,
            )
            for rank in range(world_size)
        ]
        supervisor = Supervisor(
            run_dir,
            [process.pid for process in processes],
            patience=Patience(running=patience, stopped=patience),
            internal=INTERNAL,
            show=show,
        )
        store = serve_store(listener, world_size)
        try:
            _watch(supervisor, processes)
        finally:
            end_all(processes)
            del store
        for rank, process in enumerate(processes):
            if supervisor.view.ranks[rank].ended is None:
                supervisor.ended(rank, process.returncode)
        return _outcome(supervisor)


@contextmanager
def listening_socket() -> Iterator[socket.socket]:
    """A socket bound to a free port of 127.0.0.1, so that the port is taken before anybody is told its
    number.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener


def serve_store(listener: socket.socket, world_size: int) -> object:
    """The job's store on `listener`, outside the ranks: it outlives them all."""
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # imported while the ranks import it themselves

    host, port = listener.getsockname()
    return TCPStore(
        host,
        port,
        world_size,
        True,
        timedelta(minutes=5),
        wait_for_workers=False,
        master_listen_fd=os.dup(listener.fileno()),
    )


def _watch(supervisor: Supervisor, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Poll until a diagnosis or until every rank has ended."""
    with selectors.DefaultSelector() as selector:
        for rank, process in enumerate(processes):
            selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ, rank)
        while selector.get_map():
            for key, _ in selector.select(_POLL):
                selector.unregister(key.fd)
                os.close(key.fd)
                supervisor.ended(key.data, processes[key.data].wait())
            if supervisor.poll() is not None:
                for key in list(selector.get_map().values()):
                    os.close(key.fd)
                return
        supervisor.poll(final=True)


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGCONT, SIGTERM, a moment, SIGKILL to each rank's process group, and reap."""
    for process in processes:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGCONT)
            _signal_group(process.pid, signal.SIGTERM)
    end = time.monotonic() + _SOFT_END
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        # The group may hold children of a rank that has itself ended.
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _outcome(supervisor: Supervisor) -> tuple[Report, int]:
    codes = [
        seen.ended.code if seen.ended else 0
        for seen in supervisor.view.ranks
        if not _aborted_after_its_end(seen)
    ]
    failed = next((code for code in codes if code), 0)
    if supervisor.diagnosis is not None:
        return supervisor.report("diverged"), 3
    if supervisor.broken is not None:
        sys.stderr.write(f"inconclusive: lockstep itself failed\n{supervisor.broken}")
        status = failed if failed > 0 else 128 - failed
        return supervisor.report("inconclusive"), status if failed else INCONCLUSIVE
    if failed:
        return supervisor.report("failed"), failed if failed > 0 else 128 - failed
    return supervisor.report("clean"), 0


def _aborted_after_its_end(seen: RankView) -> bool:
    """torch aborts now and then after a healthy program whose DDP object lived to the interpreter's end."""
    healthy = (
        seen.over is not None
        and seen.raised is None
        and (seen.exit is None or seen.exit.detail.get("code") == 0)
    )
    return healthy and seen.ended is not None and seen.ended.code == -signal.SIGABRT


def _environment(rank: int, world_size: int, port: int) -> Mapping[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # The store is here and not on rank 0: ranks only connect, under a prefix of this number.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "ESPER_LOCKSTEP_PARENT": str(os.getpid()),
    }
