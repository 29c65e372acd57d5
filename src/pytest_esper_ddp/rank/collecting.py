"""What the zygote and a spawned rank do alike: load torch, and collect the tests in silence."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import pytest

from esper.lockstep.errors import StartError
from esper.lockstep.rank.lineage import die_with_parent
from esper.scheduling import yield_to_running
from pytest_esper_ddp.declared import is_ddp
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.messages import Broken, Collect, Preload

ROLE = "esper-ddp-zygote"
# Threads of BLAS and OpenMP pools don't survive a fork: a two-thread matmul hung in both children.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Collecting(ABC):
    """A pytest session of which nothing is printed, and whose run loop is its subclass's."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        # Plugins warn while they are configured, and in pytest's own process they have done so.
        self._show_warning = warnings.showwarning
        warnings.showwarning = lambda *args, **kwargs: None
        self._errors: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Nothing of this session may reach the terminal: pytest's own process reports."""
        warnings.showwarning = self._show_warning
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            config.pluginmanager.unregister(reporter)
            config.pluginmanager.register(SilentReporter(reporter), "terminalreporter")
        no_other_clocks(config)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be collected, to be said of the tests that are missing."""
        if report.failed:
            self._errors.append(f"{report.nodeid}:\n{report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> NoReturn:
        """Go on with the tests on ranks that were found."""
        if getattr(session.config.option, "loadgroup", False):
            _name_groups(session.items)
        self.go_on(session, {item.nodeid: item for item in session.items if is_ddp(item)})

    @property
    def errors(self) -> str:
        """What could not be collected, and why."""
        return "\n\n".join(self._errors)

    @abstractmethod
    def go_on(self, session: pytest.Session, items: dict[str, pytest.Item]) -> NoReturn:
        """What there is to do once tests are collected; ends the process."""


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


def no_other_clocks(config: pytest.Config) -> None:
    """pytest's own process has the test's deadline: a rank that ended by itself would be the one to blame."""
    manager = config.pluginmanager
    if manager.hasplugin("timeout"):
        manager.unregister(name="timeout")
    with suppress(KeyError, ValueError):  # no such plugin, or one that can't exit
        if config.getini("faulthandler_exit_on_timeout"):
            manager.unregister(name="faulthandler")


def quiet_c10d() -> None:
    """Of each call that raises torch tells a logger that nobody reads, and pytest's capture reads all."""
    from torch.distributed import c10d_logger

    c10d_logger._c10d_logger.setLevel(logging.INFO)


def _messages(channel: socket.socket) -> Iterator[Collect]:
    """Orders to collect, until the controller is gone; modules are loaded in between. Raises Closed."""
    while True:
        message = receive(channel)
        if isinstance(message, Preload):
            importlib.import_module(message.module)
        else:
            yield message


def _session(collecting: Collecting, request: Collect) -> None:
    from _pytest.config import get_config
    from _pytest.main import _main, wrap_session

    os.chdir(request.directory)
    # What Config.fromdictargs does, but for plugins: those are chosen before any is loaded, as in pytest.
    plugins = [part for name in request.options.get("plugins") or () for part in ("-p", name)]
    config = get_config([*plugins, *request.files])
    config.option.__dict__.update({**request.options, "plugins": []})
    config.parse([*plugins, *request.files], addopts=False)
    config.pluginmanager.register(collecting, ROLE)
    status = wrap_session(config, _main)
    # Only reached when collection ended the session before its run loop.
    reason = f"pytest ended with status {int(status)} in a process that collects for ranks"
    send(collecting.channel, Broken(reason))


def run(kind: Callable[[socket.socket], Collecting]) -> NoReturn:
    """The process `python -m ... SOCKET PARENT`: load what ranks need, collect what it is told to, go on."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    yield_to_running()  # ranks inherit it: there are often more of them than cores
    try:
        import torch

        torch.set_num_threads(1)
        quiet_c10d()
        import pytest_esper_ddp.rank.worker  # noqa: F401
        from esper.lockstep.rank import compiled

        with suppress(StartError):  # the ranks say it
            compiled.load()

        for request in _messages(channel):
            _session(kind(channel), request)
    except Closed:
        pass  # the session is over, and with it this process
    except BaseException:  # noqa: BLE001  whatever it is, the controller must hear it instead of waiting
        with suppress(Closed):
            send(channel, Broken(traceback.format_exc()))
    os._exit(0)
