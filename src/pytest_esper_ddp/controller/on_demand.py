"""What `plugin.py`'s hooks call: loads and makes what runs tests on ranks when the first of them comes up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_esper_ddp.declared import ROW, is_ddp, mentions_ddp
from pytest_esper_ddp.launch import PLACE, SIGN, Place
from pytest_esper_ddp.options import Settings

if TYPE_CHECKING:
    from pytest_esper_ddp.controller.crew import Crew
    from pytest_esper_ddp.controller.session import Session


class OnDemand:
    """One pytest session's worlds; without a test on ranks none of it is imported, which takes 50 ms."""

    def __init__(self, config: pytest.Config, settings: Settings, crew: Crew | None = None) -> None:
        self._config, self._settings, self._crew = config, settings, crew
        self._status: int = pytest.ExitCode.INTERNAL_ERROR
        self._session: Session | None = None

    def saw_file(self, path: Path, session: pytest.Session) -> None:
        """A file is about to be collected, if the session is to collect it and not only one beside it."""
        if self._config.option.collectonly or not any(map(session.isinitpath, (path, *path.parents))):
            return
        if (source := mentions_ddp(path)) is not None:
            self._made().saw_source(source)

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Collection is over."""
        if self._crew is not None and not self._config.option.collectonly:
            self._crew.announce()
        if self._session is not None or any(map(is_ddp, items)):
            self._made().collected(items)

    def prepared(self, item: pytest.Item) -> AbstractContextManager[None]:
        """As `Session.prepared`."""
        return self._made().prepared(item)

    # Hooks: `plugin.py` already has a wrapper for the first.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test on ranks, which comes to as many reports as any."""
        if self._session is not None:
            self._session.last_item = item
        if not is_ddp(item):
            return None
        session = self._made()
        hook = item.ihook  # which pytest looks up anew for whoever asks
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in [*session.run(item), *session.tear_down(item, nextitem)]:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A report of this process, or of a worker of xdist, is on its way to the user."""
        if hasattr(report, ROW):
            self._made().reported(report)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """What launched ranks end with, too."""
        self._status = exitstatus

    def end_worlds(self) -> None:
        """End every world softly."""
        if self._session is not None:
            self._session.end_worlds()

    def close(self) -> None:
        """End everything that this session has started."""
        if self._session is not None:
            self._session.close()
        if self._crew is not None:
            if not self._config.option.collectonly:
                self._crew.leave(self._status)
            self._crew.close()

    def write_table(self, reporter: pytest.TerminalReporter) -> None:
        """The summary's table, where any row has come."""
        if self._session is not None and self._session.rows:
            from pytest_esper_ddp.report.terminal import write_table

            write_table(reporter, self._session.rows)

    def _made(self) -> Session:
        if self._session is None:
            from pytest_esper_ddp.controller.session import Session

            self._session = Session(self._config, self._settings, self._crew)
        return self._session


def take_part(config: pytest.Config, settings: Settings, place: Place | None) -> OnDemand | None:
    """Register what runs tests on ranks; None where another process does, and this one is told."""
    manager = config.pluginmanager
    if manager.hasplugin("esper-ddp-zygote"):
        return None
    if place is None:
        session = OnDemand(config, settings)
    elif place.rank == 0:
        session = OnDemand(config, settings, _crew(config, place))
    else:
        from pytest_esper_ddp.rank.launched import Launched

        manager.register(Launched(config, place), "esper-ddp-launched")
        return None
    manager.register(session, "esper-ddp-runner")
    return session


def _crew(config: pytest.Config, place: Place) -> Crew:
    from pytest_esper_ddp.controller.crew import Crew, finish_when_told

    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("-n: launched ranks run one test at a time; leave it out under torchrun")
    os.environ.pop(SIGN, None)
    config.stash[PLACE] = place
    finish_when_told(config)
    return Crew(place)
