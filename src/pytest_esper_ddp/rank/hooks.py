"""What pytest tells a rank: reports, the first failure, warnings, lasting fixtures, a debugger's prompt."""

from __future__ import annotations

import time
import unittest
import warnings
from collections.abc import Callable, Generator
from typing import Any

import pytest

from esper.lockstep.rank.recorder import Recorder
from pytest_esper_ddp.rank.debugging import Debugging
from pytest_esper_ddp.rank.failure import failure_of
from pytest_esper_ddp.rank.state import Snapshot
from pytest_esper_ddp.rank.traces import cut_plumbing
from pytest_esper_ddp.wire.messages import Failure, Warned

_REGISTERED = pytest.StashKey["Hooks"]()


class Hooks:
    """The plugins of a rank, idle until it has given each what it needs."""

    def __init__(self) -> None:
        self.observer, self.warnings, self.debugging = Observer(), Warnings(), Debugging()
        self.fixtures = LastingFixtures()

    @classmethod
    def of(cls, config: pytest.Config) -> Hooks:
        """Those of this process, registered once for all tests, and where ranks are forked before that:
        whoever registers is told every warning there has ever been, and is looked through for fixtures.
        """
        hooks = config.stash.get(_REGISTERED, None)
        if hooks is None:
            hooks = config.stash[_REGISTERED] = cls()
            for plugin in (hooks.observer, hooks.warnings, hooks.debugging, hooks.fixtures):
                config.pluginmanager.register(plugin)
        return hooks


class Observer:
    """Collects an item's reports, and records why it failed first the moment it does."""

    recorder: Recorder

    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []
        self.failure: Failure | None = None
        self._send_ahead: Callable[[pytest.TestReport], None] | None = None

    def begin(self, send_ahead: Callable[[pytest.TestReport], None]) -> None:
        """Another item starts."""
        self.reports, self.failure, self._send_ahead = [], None, send_ahead

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)
        worth_it = report.failed or report.sections
        if worth_it and self._send_ahead and report.when != "teardown" and type(report) is pytest.TestReport:
            self._send_ahead(report)  # after a teardown the outcome follows at once

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        at = time.monotonic()
        # To show an error may take pytest longer than the others' patience: they wait for this rank.
        error = None if call.excinfo is None else call.excinfo.value
        said = error is not None and self.failure is None and _fails(item, error)
        if said and error is not None:
            self.recorder.raised(error, leaves=False)  # teardown is still to come
        if error is not None and not item.config.option.fulltrace:
            cut_plumbing(error)
        report = yield
        if report.failed and error is not None and self.failure is None:
            if not said:
                self.recorder.raised(error, leaves=False)
            self.failure = failure_of(error, report.when, at)
        elif report.failed and self.failure is None:  # a strict xfail that passed
            self.failure = Failure(report.when, at, "Failed", report.longreprtext, victim=False)
        return report

    def broke(self, error: BaseException) -> None:
        """pytest's protocol itself did not come to its end."""
        self.recorder.raised(error, leaves=False)
        if self.failure is None:
            self.failure = failure_of(error, "call", time.monotonic())


def _fails(item: pytest.Item, error: BaseException) -> bool:
    """Whether it is seen from the error alone that its report will be a failed one."""
    outcomes = (pytest.skip.Exception, pytest.xfail.Exception, unittest.SkipTest)
    return not isinstance(error, outcomes) and item.get_closest_marker("xfail") is None


class Warnings:
    """What the warnings plugin has recorded in this rank during the running test."""

    def __init__(self) -> None:
        self.recorded: list[Warned] = []

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        category = warning_message.category
        self.recorded.append(
            Warned(
                str(warning_message.message),
                category.__module__,
                category.__qualname__,
                warning_message.filename,
                warning_message.lineno,
            )
        )


class LastingFixtures:
    """Tells the rank's snapshot what fixtures change and leave that live longer than a test."""

    snapshot: Snapshot | None = None  # no test comes after this one

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """What such a fixture changes is no test's: it stays until its own end."""
        if fixturedef.scope == "function" or self.snapshot is None:
            return (yield)
        with self.snapshot.adopting(fixturedef.addfinalizer):
            return (yield)
