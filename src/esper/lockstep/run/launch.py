"""`python -m esper.lockstep run`: an unmodified env:// script on N ranks under the supervisor."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from esper.lockstep.building import wanted
from esper.lockstep.errors import StartError
from esper.lockstep.frames import INTERNAL
from esper.lockstep.proof.finding import Patience, ranks_text
from esper.lockstep.proof.view import RankView
from esper.lockstep.record.entry import State
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.report.diagnosis import Report
from esper.lockstep.run.apart import ApartWatch, not_compared
from esper.lockstep.run.ending import end_all, keeper, run_directory
from esper.lockstep.run.supervisor import Supervisor

INCONCLUSIVE = 4


def run(
    command: Sequence[str], world_size: int, patience: Patience, show: Callable[[str], None]
) -> tuple[Report, int]:
    """Run `command` (script and arguments) on `world_size` ranks; the report, and the exit status for the
    shell.
    """
    try:
        wanted()  # here, or each rank would say that it is not
        with run_directory() as run_dir, keeper(run_dir) as keep, listening_socket() as listener:
            return _run(command, world_size, patience, show, run_dir, listener, keep)
    except StartError as error:
        show(f"inconclusive: {error}")
        return Report("inconclusive", (), ()), INCONCLUSIVE


def _run(
    command: Sequence[str],
    world_size: int,
    patience: Patience,
    show: Callable[[str], None],
    run_dir: Path,
    listener: socket.socket,
    keep: Callable[[int], None],
) -> tuple[Report, int]:
    processes: list[subprocess.Popen[bytes]] = []
    store = None
    try:
        port = listener.getsockname()[1]
        for rank in range(world_size):
            processes.append(_start(command, run_dir, _environment(rank, world_size, port)))
            keep(processes[-1].pid)
        supervisor = Supervisor(
            run_dir,
            [process.pid for process in processes],
            patience=patience,
            internal=INTERNAL,
            show=show,
        )
        try:
            store = serve_store(listener, world_size)
        except (ImportError, RuntimeError) as error:
            raise StartError("the job's store", str(error)) from error
        inconclusive = _watch(supervisor, processes, patience, show)
    finally:
        end_all(processes)
        del store
    for rank, process in enumerate(processes):
        if supervisor.view.ranks[rank].ended is None:
            supervisor.ended(rank, process.returncode)
    if inconclusive is not None:
        show(f"inconclusive: {inconclusive}")
        return supervisor.report("inconclusive"), INCONCLUSIVE
    return _outcome(supervisor, show)


def _start(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "esper.lockstep.rank", str(run_dir), *command],
            env=environment,
            process_group=0,
        )
    except OSError as error:
        raise StartError(f"rank {environment['RANK']}", error.strerror or str(error)) from error


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


def _watch(
    supervisor: Supervisor,
    processes: Sequence[subprocess.Popen[bytes]],
    patience: Patience,
    show: Callable[[str], None],
) -> str | None:
    """Poll until a diagnosis or until every rank has ended; or until nothing is to be had, and return why."""
    after = _AfterAFailure(supervisor, patience.running)
    apart = ApartWatch(supervisor.view, supervisor.pids, patience, supervisor.compiled_in_all)
    with selectors.EpollSelector() as selector, ExitStack() as open_ones:
        for rank, process in enumerate(processes):
            try:
                watch = os.pidfd_open(process.pid)
            except OSError as error:  # more ranks than this process may have files
                raise StartError(f"a watch on rank {rank}", error.strerror or str(error)) from error
            open_ones.callback(os.close, watch)
            selector.register(watch, selectors.EVENT_READ, rank)
        while selector.get_map():
            for key, _ in supervisor.wait(selector):
                selector.unregister(key.fd)
                rank = int(key.data)
                supervisor.ended(rank, processes[rank].wait())
                if LedgerReader(supervisor.run_dir, rank).state() is State.STARTING:
                    code = processes[rank].returncode
                    how = f"by signal {-code}" if code < 0 else f"with status {code}"
                    return f"rank {rank} ended {how} before its script began"
            if supervisor.poll() is not None:
                return None
            now = time.monotonic()
            if waits := apart.stuck(now):
                return apart.text(waits, now, supervisor.line_of)
            if (said := after.nothing_moves(now)) is not None:
                show(said)
                return None
        supervisor.poll(final=True)
        return None


class _AfterAFailure:
    """A failed run whose other ranks do nothing that is seen: they may wait for the one that failed in a
    store, or in a call that all had entered before it failed on one.
    """

    def __init__(self, supervisor: Supervisor, patience: float) -> None:
        self._ranks, self._patience = supervisor.view.ranks, patience
        self._seen: list[object] = []
        self._since = 0.0

    def nothing_moves(self, now: float) -> str | None:
        """What to say when a rank has failed and no record has come, and no rank ended, for the patience."""
        failed = [seen for seen in self._ranks if seen.ended is not None and seen.ended.code]
        if not failed:
            return None
        seen: list[object] = [(seen.last, seen.ended) for seen in self._ranks]
        if seen != self._seen:
            self._seen, self._since = seen, now
            return None
        if now - self._since <= self._patience:
            return None
        living = ranks_text(seen.rank for seen in self._ranks if seen.ended is None)
        return (
            f"{ranks_text(seen.rank for seen in failed)} failed, and nothing was heard of {living} for "
            f"{self._patience:g} s since: ended"
        )


def _outcome(supervisor: Supervisor, show: Callable[[str], None]) -> tuple[Report, int]:
    codes = [
        seen.ended.code if seen.ended else 0
        for seen in sorted(supervisor.view.ranks, key=lambda seen: seen.ended.at if seen.ended else 0.0)
        if not _aborted_after_its_end(seen)
    ]
    failed = next((code for code in codes if code), 0)
    if supervisor.diagnosis is not None:
        return supervisor.report("diverged"), 3
    if supervisor.broken is not None:
        show(f"inconclusive: lockstep itself failed\n{supervisor.broken.rstrip()}")
        status = failed if failed > 0 else 128 - failed
        return supervisor.report("inconclusive"), status if failed else INCONCLUSIVE
    if (said := not_compared(supervisor.view)) is not None:
        show(said)
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
