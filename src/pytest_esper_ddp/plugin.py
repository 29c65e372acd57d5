"""The plugin's hooks, and nothing else; torch is not imported until a test asks for ranks."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_esper_ddp import options
from pytest_esper_ddp.controller.on_demand import OnDemand, take_part
from pytest_esper_ddp.declared import DECLARATIONS, is_ddp, leaves_size_open
from pytest_esper_ddp.launch import place_of

if TYPE_CHECKING:
    from pytest_esper_ddp.handle import DDP

_SESSION = pytest.StashKey[OnDemand]()
_SETTINGS = pytest.StashKey[options.Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    for declaration in DECLARATIONS:
        config.addinivalue_line("markers", declaration)
    place = place_of(os.environ)
    config.stash[_SETTINGS] = settings = options.settings_of(config, place)
    if (session := take_part(config, settings, place)) is not None:
        config.stash[_SESSION] = session


def pytest_report_header(config: pytest.Config) -> str:
    return config.stash[_SETTINGS].header()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> None:
    if (session := parent.config.stash.get(_SESSION, None)) is not None:
        session.saw_file(file_path, parent.session)


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
    if session is not None and config.get_verbosity() >= 0:
        session.write_table(terminalreporter)


@pytest.fixture
def ddp(request: pytest.FixtureRequest) -> DDP:
    """This rank's place in the world: `ddp.rank`, `ddp.world_size`, `ddp.assert_same`, `ddp.shared_path`."""
    from pytest_esper_ddp.handle import CURRENT

    current: DDP | None = request.node.stash.get(CURRENT, None)
    if current is None:
        pytest.fail("the ddp fixture needs @pytest.mark.ddp: this test runs in pytest's own process")
    return current
