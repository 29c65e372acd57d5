"""The process that ranks are forked from: torch and the test modules loaded, one thread, no CUDA, no store.

Started as `python -m pytest_esper_ddp.rank.zygote SOCKET PARENT`. It is a pytest session of its own whose
run loop waits for worlds to fork instead of running tests.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from esper.lockstep.errors import StartError
from esper.lockstep.rank.lineage import die_with_parent
from esper.scheduling import yield_to_running
from pytest_esper_ddp.declared import is_ddp
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.messages import Broken, Collect, Collected, Exited, Forked, ForkWorld, Preload
from pytest_esper_ddp.wire.parameters import parameter_digest

ROLE = "esper-ddp-zygote"
# Threads of BLAS and OpenMP pools don't survive a fork: a two-thread matmul hung in both children.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Zygote:
    """The plugin that takes the run loop over."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        # Plugins warn while they are configured, and in pytest's own process they have done so.
        self._show_warning = warnings.showwarning
        warnings.showwarning = lambda *args, **kwargs: None
        self._errors: list[str] = []
        self._children: dict[int, int] = {}  # pid by pidfd

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Nothing of this session may reach the terminal: pytest's own process reports."""
        warnings.showwarning = self._show_warning
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            config.pluginmanager.unregister(reporter)
            config.pluginmanager.register(SilentReporter(reporter), "terminalreporter")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._errors.append(f"{report.nodeid}:\n{report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Say what was collected, then fork worlds until the controller is gone."""
        if getattr(session.config.option, "loadgroup", False):
            _name_groups(session.items)
        items = {item.nodeid: item for item in session.items if is_ddp(item)}
        threads = len(os.listdir("/proc/self/task"))
        digests = {nodeid: parameter_digest(item) for nodeid, item in items.items()}
        send(self.channel, Collected(digests, threads, "\n\n".join(self._errors)))
        gc.collect()
        gc.freeze()  # else each rank's first collection copies every page: 137 ms with dynamo loaded
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.channel.fileno():
                    self._fork_world(session, items, poll)
                else:
                    self._reap(fd, poll)

    def _fork_world(self, session: pytest.Session, items: dict[str, pytest.Item], poll: select.poll) -> None:
        data, sockets, _, _ = socket.recv_fds(self.channel, 1, 1024)
        if not data:
            os._exit(0)  # the controller has closed its end
        request: ForkWorld = receive(self.channel)
        pids = []
        me = os.getpid()
        for rank in range(request.world_size):
            pid = os.fork()
            if pid == 0:
                die_with_parent(me)
                self._be_rank(session, items, request, rank, sockets)
            pids.append(pid)
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = pid
            poll.register(pidfd, select.POLLIN)
        for fd in sockets:
            os.close(fd)
        send(self.channel, Forked(tuple(pids)))

    def _be_rank(
        self,
        session: pytest.Session,
        items: dict[str, pytest.Item],
        request: ForkWorld,
        rank: int,
        sockets: list[int],
    ) -> None:
        """In the child: never returns."""
        status = 70  # EX_SOFTWARE, unless the worker says otherwise
        try:
            self.channel.close()
            for index, fd in enumerate(sockets):
                if index != rank:
                    os.close(fd)
            for pidfd in self._children:
                os.close(pidfd)
            session.config.pluginmanager.unregister(self)
            from pytest_esper_ddp.rank.worker import Worker

            with socket.socket(fileno=sockets[rank]) as channel:
                status = Worker(session, items, channel, rank, request).run()
        except BaseException:  # noqa: BLE001  nothing above this frame belongs to the rank
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap(self, pidfd: int, poll: select.poll) -> None:
        poll.unregister(pidfd)
        os.close(pidfd)
        pid = self._children.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        send(self.channel, Exited(pid, os.waitstatus_to_exitcode(status)))


def _name_groups(items: Sequence[Any]) -> None:
    """With --dist=loadgroup a worker of xdist has other names for its items than pytest."""
    for item in items:
        groups = {
            str((*mark.args, mark.kwargs.get("name", "default"))[0])
            for mark in item.iter_markers("xdist_group")
        }
        if groups:
            item._nodeid = f"{item.nodeid}@{'_'.join(sorted(groups))}"


class SilentReporter:
    """Stands in for the terminal reporter: plugins look it up and call it."""

    def __init__(self, reporter: Any) -> None:
        self._tw = reporter._tw
        # Lives as long as the process, also where --setup-show is written elsewhere.
        self._tw._file = self.nowhere = open(os.devnull, "w")  # noqa: SIM115
        self.config = reporter.config
        self.verbosity = reporter.verbosity

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def _messages(channel: socket.socket) -> Iterator[Collect]:
    while True:
        message = receive(channel)
        if isinstance(message, Preload):
            importlib.import_module(message.module)
        else:
            yield message


def _session(channel: socket.socket, request: Collect) -> None:
    from _pytest.config import get_config
    from _pytest.main import _main, wrap_session

    os.chdir(request.directory)
    zygote = Zygote(channel)
    # What Config.fromdictargs does, but for plugins: those are chosen before any is loaded, as in pytest.
    plugins = [part for name in request.options.get("plugins") or () for part in ("-p", name)]
    config = get_config([*plugins, *request.files])
    config.option.__dict__.update({**request.options, "plugins": []})
    config.parse([*plugins, *request.files], addopts=False)
    config.pluginmanager.register(zygote, ROLE)
    status = wrap_session(config, _main)
    # Only reached when collection ended the session before its run loop.
    send(channel, Broken(f"pytest ended with status {int(status)} in the process that ranks are forked from"))


def main() -> None:
    """Load what ranks need, then wait to be told what to collect."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    yield_to_running()  # ranks inherit it: there are often more of them than cores
    try:
        import torch
        from torch.distributed import c10d_logger

        torch.set_num_threads(1)
        # Of each call that raises torch tells a logger that nobody reads, and pytest's capture reads all.
        c10d_logger._c10d_logger.setLevel(logging.INFO)
        import pytest_esper_ddp.rank.worker  # noqa: F401
        from esper.lockstep.rank import compiled

        with suppress(StartError):  # the ranks say it
            compiled.load()

        for request in _messages(channel):
            _session(channel, request)
    except Closed:
        pass  # the session is over, and with it this process
    except BaseException:  # noqa: BLE001  whatever it is, the controller must hear it instead of waiting
        send(channel, Broken(traceback.format_exc()))
    os._exit(0)


if __name__ == "__main__":
    main()
