"""The plugin's hooks, and nothing else; torch is not imported until a test asks for ranks."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_esper_ddp import options
from pytest_esper_ddp.markers import DECLARATIONS, is_ddp, leaves_size_open

if TYPE_CHECKING:
    from pytest_esper_ddp.controller.session import Session
    from pytest_esper_ddp.handle import DDP

_SESSION: pytest.StashKey[Session] = pytest.StashKey()
_SETTINGS = pytest.StashKey[options.Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    for declaration in DECLARATIONS:
        config.addinivalue_line("markers", declaration)
    config.stash[_SETTINGS] = settings = options.settings_of(config)
    if not config.pluginmanager.hasplugin("esper-ddp-zygote"):
        from pytest_esper_ddp.controller.session import Session

        config.stash[_SESSION] = session = Session(config, settings)
        config.pluginmanager.register(_RunsOnRanks(session), "esper-ddp-runner")


def pytest_report_header(config: pytest.Config) -> str:
    return config.stash[_SETTINGS].header()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> None:
    if (session := parent.config.stash.get(_SESSION, None)) is not None:
        session.saw_file(file_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes = metafunc.config.stash[_SETTINGS].world_sizes
    if len(sizes) > 1 and leaves_size_open(metafunc.definition):
        metafunc.fixturenames.append("ddp_world_size")
        metafunc.parametrize("ddp_world_size", sizes, ids=[f"{size}ranks" for size in sizes])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if (worlds := session.config.stash.get(_SESSION, None)) is not None:
        worlds.collected(session.items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    session = item.config.stash.get(_SESSION, None)
    if session is None or not is_ddp(item):
        return (yield)
    # Outermost: no wait for ranks may run inside pytest-timeout's clock for the item.
    with session.prepared(item):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, Any, Any]:
    try:
        return (yield)
    finally:
        # Here and not at the session's finish: pytest-cov combines before that.
        if (worlds := session.config.stash.get(_SESSION, None)) is not None:
            worlds.end_worlds()


def pytest_unconfigure(config: pytest.Config) -> None:
    if (session := config.stash.get(_SESSION, None)) is not None:
        session.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash.get(_SESSION, None)
    if session is not None and session.rows and config.get_verbosity() >= 0:
        from pytest_esper_ddp.report.terminal import write_table

        write_table(terminalreporter, session.rows)


class _RunsOnRanks:
    """Registered beside this module, which already has a wrapper for the same hook."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not is_ddp(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in [*self.session.run(item), *self.session.tear_down(item, nextitem)]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.session.reported(report)


@pytest.fixture
def ddp(request: pytest.FixtureRequest) -> DDP:
    """This rank's place in the world: `ddp.rank`, `ddp.world_size`, `ddp.assert_same`, `ddp.shared_path`."""
    from pytest_esper_ddp.handle import CURRENT

    current: DDP | None = request.node.stash.get(CURRENT, None)
    if current is None:
        pytest.fail("the ddp fixture needs @pytest.mark.ddp: this test runs in pytest's own process")
    return current
