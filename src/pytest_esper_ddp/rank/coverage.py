"""Which lines this rank executes, written down after each test: a rank may be killed in the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

from pytest_esper_ddp.wire.messages import Measured


class Measurement:
    """Runs from the rank's start to its end, with the settings of the one in pytest's process."""

    def __init__(self, config: pytest.Config, measured: Measured) -> None:
        import coverage

        os.environ.update(measured.environment)
        self._cov: Any = coverage.Coverage(data_file=str(measured.data), data_suffix=True, config_file=False)
        settings: Any = measured.settings
        settings.data_file = str(measured.data)
        self._cov.config = settings
        # Each rank runs a part of the tests, and what it runs pytest's process has imported before.
        self._cov._warn_no_data = self._cov._warn_unimported_source = False
        self._cov._warn_preimported_source = False
        self._by_test = getattr(config.option, "cov_context", None) == "test"
        self._own_contexts = settings.dynamic_context is not None
        self._process = os.getpid()
        self._cov.start()
        signal.signal(signal.SIGTERM, self._ended)

    def save(self) -> None:
        """Write down what has been executed so far."""
        if self._own_contexts:
            self._cov.save()
        else:
            self._cov.switch_context("")  # writes, and does not look through all source files as save() does

    def stop(self) -> None:
        """Write down the rest."""
        self._cov.stop()
        self._cov.save()

    def _ended(self, number: int, frame: object) -> None:
        """The world ends before this rank has come to the end of its test."""
        if os.getpid() == self._process:  # and no child that a test has forked
            self.stop()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # What pytest-cov does around tests, which is not at work in ranks.

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._enter(item, "setup")
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._enter(item, "run")
        if item.get_closest_marker("no_cover") is None and "no_cover" not in getattr(
            item, "fixturenames", ()
        ):
            return (yield)
        self._cov.stop()
        try:
            return (yield)
        finally:
            self._cov.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._enter(item, "teardown")
        return (yield)

    def _enter(self, item: pytest.Item, when: str) -> None:
        if self._by_test:
            self._cov.switch_context(f"{item.nodeid}|{when}")
