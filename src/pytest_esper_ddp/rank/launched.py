"""Any rank but 0 that torchrun has launched: prints nothing, and is told which tests to run.

Its pytest collects as that of rank 0 does. Its run loop is then a rank's: `Worker`, until the world is over,
and after that a new life of the same process (`controller/crew.py` says why).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress

import pytest

from esper.lockstep.rank.lineage import die_with_parent
from pytest_esper_ddp.declared import is_ddp
from pytest_esper_ddp.launch import SIGN, Place
from pytest_esper_ddp.rank.collecting import SilentReporter, no_other_clocks, quiet_c10d
from pytest_esper_ddp.rank.worker import Worker
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.meeting import is_ours, store_of
from pytest_esper_ddp.wire.messages import BecomeRank, Joined, Leave
from pytest_esper_ddp.wire.parameters import parameter_digest


class Launched:
    """The plugin that takes the run loop over."""

    def __init__(self, config: pytest.Config, place: Place) -> None:
        self._place = place
        self._environment = dict(os.environ)
        os.environ.pop(SIGN, None)
        self._directory = os.getcwd()
        # Ctrl-C is for rank 0's pytest: when that ends, its connections do, and so do the ranks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with_parent(os.getppid())
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture(in_=True)
        self._streams = [os.dup(number) for number in range(3)]
        if capture is not None:
            capture.resume_global_capture()
        # To pytest and its plugins a process that has this writes no files and leaves reporting to another.
        config.workerinput = {"workerid": f"rank{place.rank}"}  # type: ignore[attr-defined]
        _measure_no_more(config)
        quiet_c10d()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Nothing of this session may reach the terminal, nor what the reporter is about to write itself."""
        manager = session.config.pluginmanager
        reporter = manager.getplugin("terminalreporter")
        if reporter is not None:
            manager.unregister(reporter)
            manager.register(SilentReporter(reporter), "terminalreporter")
        no_other_clocks(session.config)
        for name in ("pdbinvoke", "pdbtrace"):  # who has the terminal decides when (`rank/debugging.py`)
            if manager.hasplugin(name):
                manager.unregister(name=name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Be a rank of one world, or end with the session."""
        if session.config.option.collectonly:
            return True
        items = {item.nodeid: item for item in session.items if is_ddp(item)}
        try:
            connection = self._connect(items)
            message = receive(connection)
            if isinstance(message, BecomeRank):
                _, (end,), _, _ = socket.recv_fds(connection, 1, 1)
                threading.Thread(target=self._obey, args=(connection,), daemon=True).start()
                with socket.socket(fileno=end) as channel:
                    Worker(session, items, channel, message.rank, message.world).run()
                self._begin_anew()
            assert isinstance(message, Leave)
            # All end at once, and torchrun sends it to the others of the first that had failures.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            status = message.status or 0
        except (Closed, OSError):
            status = pytest.ExitCode.INTERRUPTED  # rank 0's pytest is gone
        raise pytest.exit.Exception("the session is over", returncode=status)

    def _connect(self, items: dict[str, pytest.Item]) -> socket.socket:
        name = store_of(self._place).get("socket").decode()
        digests = {nodeid: parameter_digest(item) for nodeid, item in items.items()}
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"\0{name}")
        if not is_ours(connection):
            raise ConnectionError(f"{name} is another user's")
        send(connection, Joined(self._place.rank, os.getpid(), digests))
        return connection

    def _obey(self, connection: socket.socket) -> None:
        """In a thread: the rank's own may be in a collective that nothing ends."""
        try:
            receive(connection)
        except (Closed, OSError):
            os._exit(pytest.ExitCode.INTERRUPTED)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Never returns. The process keeps its number; what tests have left in it goes."""
        for number, stream in enumerate(self._streams):
            os.dup2(stream, number)
        with suppress(OSError):
            os.chdir(self._directory)
        # Connections that stayed open would look alive to gloo's peers. They close with exec and not before:
        # gloo's own thread ends a process in which one is closed behind its back.
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):
                os.set_inheritable(fd, fd <= 2)
        os.execve(sys.executable, sys.orig_argv, self._environment)


def _measure_no_more(config: pytest.Config) -> None:
    """As a rank it measures what rank 0's pytest does, which also takes it in."""
    plugin = config.pluginmanager.getplugin("_cov")
    if plugin is not None:
        config.pluginmanager.unregister(plugin)
    coverage = sys.modules.get("coverage")
    current = None if coverage is None else coverage.Coverage.current()
    if current is not None:
        current.stop()
