"""Reports of a test that passed stay in their rank only where nothing in them is news to pytest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_esper_ddp.rank.passing import remember_keywords, times_of

Reports = list[pytest.TestReport]


class Serialising:
    """A plugin that has a say in how reports travel."""

    def pytest_report_to_serializable(self) -> None: ...


@pytest.fixture
def item(request: pytest.FixtureRequest) -> pytest.Item:
    """The running test's own, as it was collected."""
    found: pytest.Item = request.node
    remember_keywords(found)
    return found


def reports_of(item: pytest.Item) -> Reports:
    """As pytest makes them."""
    phases: Any = ("setup", "call", "teardown")
    calls = [pytest.CallInfo.from_call(lambda: None, when=when) for when in phases]
    return [pytest.TestReport.from_item_and_call(item, call) for call in calls]


def add_keyword(item: pytest.Item, reports: Reports) -> None:
    item.keywords["came_later"] = True
    reports[:] = reports_of(item)


def add_property(item: pytest.Item, reports: Reports) -> None:
    item.user_properties.append(("norm", 1.0))
    reports[:] = reports_of(item)


def print_something(item: pytest.Item, reports: Reports) -> None:
    item.add_report_section("call", "stdout", "hello")
    reports[:] = reports_of(item)


def be_skipped(_: pytest.Item, reports: Reports) -> None:
    reports[1].outcome = "skipped"


def add_attribute(_: pytest.Item, reports: Reports) -> None:
    reports[2].shown_by_a_plugin = "x"  # type: ignore[attr-defined]


def add_text(_: pytest.Item, reports: Reports) -> None:
    reports[0].longrepr = "x"


def move(_: pytest.Item, reports: Reports) -> None:
    reports[1].location = ("elsewhere.py", 1, "test")


def rename(_: pytest.Item, reports: Reports) -> None:
    reports[1].nodeid += " again"


def leave_one_out(_: pytest.Item, reports: Reports) -> None:
    del reports[1]


def be_one_of_a_plugin(_: pytest.Item, reports: Reports) -> None:
    class Own(pytest.TestReport):
        pass

    reports[1].__class__ = Own


def have_a_plugin(item: pytest.Item, _: Reports) -> None:
    item.config.pluginmanager.register(Serialising(), "serialising")


def test_usual_ones_come_to_their_times(item: pytest.Item) -> None:
    reports = reports_of(item)
    assert times_of(item, reports) == tuple((one.start, one.stop, one.duration) for one in reports)


@pytest.mark.parametrize(
    "change",
    [
        add_keyword,
        add_property,
        print_something,
        be_skipped,
        add_attribute,
        add_text,
        move,
        rename,
        leave_one_out,
        be_one_of_a_plugin,
        have_a_plugin,
    ],
)
def test_others_travel_whole(item: pytest.Item, change: Callable[[pytest.Item, Reports], None]) -> None:
    reports = reports_of(item)
    try:
        change(item, reports)
        assert times_of(item, reports) is None
    finally:
        item._report_sections.clear()
        item.user_properties.clear()
        if (plugin := item.config.pluginmanager.getplugin("serialising")) is not None:
            item.config.pluginmanager.unregister(plugin)


def test_without_what_was_collected_they_travel_whole(request: pytest.FixtureRequest) -> None:
    assert times_of(request.node, reports_of(request.node)) is None
