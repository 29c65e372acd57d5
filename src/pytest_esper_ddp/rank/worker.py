"""A rank: runs pytest's own protocol for each item that it is told, and reports what came of it."""

from __future__ import annotations

import atexit
import faulthandler
import os
import pickle
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import pytest

from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.rank.stacks import answer_stack_requests
from esper.lockstep.starting import leave
from pytest_esper_ddp import handle
from pytest_esper_ddp.rank.capture import captured_files, own_capture
from pytest_esper_ddp.rank.coverage import Measurement
from pytest_esper_ddp.rank.failure import failure_of
from pytest_esper_ddp.rank.hooks import Hooks
from pytest_esper_ddp.rank.inject import Injector, refusal
from pytest_esper_ddp.rank.joining import join
from pytest_esper_ddp.rank.passing import times_of
from pytest_esper_ddp.rank.recording import record
from pytest_esper_ddp.rank.state import Snapshot, seed_rank
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.messages import (
    Broken,
    Early,
    EndWorld,
    Failure,
    Finalised,
    ForkWorld,
    Outcome,
    RunTest,
    Up,
)
from pytest_esper_ddp.wire.plain import packed


def be_rank(
    session: pytest.Session,
    items: dict[str, pytest.Item],
    channel: socket.socket,
    rank: int,
    world: ForkWorld,
) -> NoReturn:
    """Be a rank until the controller has no more use for it; ends the process."""
    status = 70  # EX_SOFTWARE, unless the worker says otherwise
    try:
        with channel:
            status = Worker(session, items, channel, rank, world).run()
    except BaseException:  # noqa: BLE001  nothing above this frame belongs to the rank
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Worker:
    """One rank's whole life."""

    def __init__(
        self,
        session: pytest.Session,
        items: dict[str, pytest.Item],
        channel: socket.socket,
        rank: int,
        world: ForkWorld,
    ) -> None:
        self.session, self.items, self.channel, self.rank, self.world = session, items, channel, rank, world
        self.pid = os.getpid()
        self.recorder: Recorder
        self.interception: Interception | None = None
        self.hooks = hooks = Hooks.of(session.config)
        self.observer, self.warnings, self.debugging = hooks.observer, hooks.warnings, hooks.debugging
        self.measurement: Measurement | None = None
        self.last: pytest.Item | None = None

    def run(self) -> int:
        """Start, serve until told to end or until the controller is gone; the process's exit status."""
        # A group of its own: what a test starts ends with its rank, and Ctrl-C goes to pytest alone.
        if os.getpgrp() != os.getpid():  # a launched one has its own, and may not take another
            os.setpgid(0, 0)
        try:
            self._start()
        except Exception as error:  # noqa: BLE001  said by the controller, as the error of each test that waits
            send(self.channel, Broken(f"{type(error).__name__}: {error}"))
            return 1
        captured = captured_files(self.session.config)
        send(self.channel, Up(len(captured)))
        if captured:
            socket.send_fds(self.channel, [b"c"], captured)
        seed_rank(self.world.seed)
        # Nobody comes after the test of a world that is its own.
        snapshot = self.hooks.fixtures.snapshot = Snapshot() if self.world.lasting else None
        try:
            while isinstance(message := receive(self.channel), RunTest):
                self._answer(self._outcome(message, snapshot))
            soft = isinstance(message, EndWorld)
        except Closed:
            soft = False
        if soft:
            self._answer_end()
            atexit._run_exitfuncs()  # those of the tests, as at any program's end: its exit counts, too
        if self.measurement is not None:
            self.measurement.stop()
        return 0

    def _answer_end(self) -> None:
        """Finalise session and module fixtures, which nothing else would, and say what came of it."""
        call = pytest.CallInfo.from_call(
            lambda: self.session._setupstate.teardown_exact(None), when="teardown"
        )
        end = Finalised()
        if call.excinfo is not None and self.last is not None:
            report = pytest.TestReport.from_item_and_call(self.last, call)
            end = Finalised(
                failure_of(call.excinfo.value, "teardown", time.monotonic()), _serialised(self.last, report)
            )
        with suppress(Closed):
            send(self.channel, end)

    def _start(self) -> None:
        world, config = self.world, self.session.config
        own_capture(config)
        _own_temp(config, world.base_temp / f"rank{self.rank}")
        if world.measured is not None:
            self.measurement = Measurement(config, world.measured)
            config.pluginmanager.register(self.measurement)
        self.debugging.attach(config, self.channel, self.rank, world.debugger)
        faulthandler.disable()  # pytest's has the terminal: lockstep's writes where the controller looks
        answer_stack_requests(world.run_dir, self.rank)
        self.recorder, self.interception = record(config, world, self.rank)
        self.observer.recorder = self.recorder
        join(world, self.rank)

    def _outcome(self, order: RunTest, snapshot: Snapshot | None) -> Outcome:
        try:
            return self._test(order, snapshot)
        except Exception as error:  # noqa: BLE001  ours, or a state that can't be put back; not a silent end
            return Outcome((), None, {}, (), error=f"the harness failed: {type(error).__name__}: {error}")

    def _test(self, order: RunTest, snapshot: Snapshot | None) -> Outcome:
        if (refused := refusal(order.faults)) is not None:
            return Outcome((), None, {}, (), refused=refused)
        item = self.last = self.items[order.nodeid]
        observer = self.observer
        observer.begin(lambda report: self._send_ahead(item, report, observer.failure))
        current = handle.DDP(self.rank, self.world)
        item.stash[handle.CURRENT] = current
        self.warnings.recorded.clear()
        shown = _shown_setups(item.config)
        # Every rank counts from 0 again before any of them can issue something.
        if self.interception is None:
            self.recorder.begin(order.name)
        else:
            self.interception.judged = order.judged
            self.interception.begin(order.name)
        injector = Injector(order.faults, self.rank, self.recorder, self.interception)
        error, stops = None, False
        try:
            # xdist gives a worker any of the items next: what the last one has left may not fit.
            self.session._setupstate.teardown_exact(item)
            with injector:
                item.ihook.pytest_runtest_protocol(
                    item=item, nextitem=self.items.get(order.next_nodeid) if order.next_nodeid else None
                )
            if os.getpid() != self.pid:
                os._exit(1)  # a child of the test's that ran on where its parent does
        except BaseException as caught:  # noqa: BLE001  pytest.exit, Ctrl-C of its own, a hook of a plugin
            error = f"{type(caught).__name__}: {caught}"
            stops = isinstance(caught, pytest.exit.Exception)
            observer.broke(caught)
        finally:
            self.debugging.leave()
            leave()  # the program's own watchdog: its verdict has no program to come to any more
        self.recorder.over()
        if self.measurement is not None:
            self.measurement.save()
        passed = times_of(item, observer.reports)
        told = observer.reports if passed is None else ()
        return Outcome(
            reports=tuple(_serialised(item, report) for report in told),
            failure=observer.failure,
            groups=self.interception.summary() if self.interception is not None else {},
            fired=injector.fired(),
            leaks=() if snapshot is None else snapshot.restore(),
            notes=tuple(current.notes),
            error=error,
            stops=stops,
            warnings=tuple(self.warnings.recorded),
            shown=shown.getvalue(),
            passed=passed,
        )

    def _answer(self, outcome: Outcome) -> None:
        try:
            send(self.channel, outcome)
        except Closed:
            raise
        except Exception as error:  # noqa: BLE001  whatever a plugin has put into a report
            told = f"its reports can't be sent: {type(error).__name__}: {error}"
            send(self.channel, replace(outcome, reports=(), error=told))

    def _send_ahead(self, item: pytest.Item, report: pytest.TestReport, failure: Failure | None) -> None:
        """Something to show even if this rank dies before the item is over."""
        # What can't be sent is in the outcome once more, and said there.
        with suppress(pickle.PicklingError, TypeError, AttributeError):
            send(self.channel, Early(_serialised(item, report), failure))


def _serialised(item: pytest.Item, report: pytest.TestReport) -> dict[str, Any]:
    data: dict[str, Any] = item.ihook.pytest_report_to_serializable(config=item.config, report=report)
    if data.get("user_properties"):
        data["user_properties"] = packed(data["user_properties"])
    return data


def _shown_setups(config: pytest.Config) -> StringIO:
    """Where --setup-show writes from now on; nothing else has a terminal here."""
    text = StringIO()
    if config.option.setupshow:
        config.get_terminal_writer()._file = text
    return text


def _own_temp(config: pytest.Config, path: Path) -> None:
    """Where `tmp_path` is, made when something first asks for it: most tests don't."""
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is None:
        return
    factory._basetemp = None

    def getbasetemp() -> Path:
        if factory._basetemp is None:
            path.mkdir(parents=True)
            factory._basetemp = path
        return path

    factory.getbasetemp = getbasetemp
