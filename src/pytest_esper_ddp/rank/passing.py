"""Tests that pass without a word: of what pytest reports of them only the times have to travel."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_esper_ddp.wire.messages import Times

_PHASES = ("setup", "call", "teardown")
# As they were when the item was collected: pytest's own process has collected them, too.
_COLLECTED = pytest.StashKey[dict[str, int]]()
# What a report has to which no plugin has added anything.
_USUAL = vars(pytest.TestReport("", ("", 0, ""), {}, "passed", None, "call")).keys()


def remember_keywords(item: pytest.Item) -> None:
    """What the reports of the item are expected to say of it."""
    item.stash[_COLLECTED] = dict.fromkeys(item.keywords, 1)


def times_of(item: pytest.Item, reports: Sequence[pytest.TestReport]) -> Times | None:
    """Start, stop and duration by phase; None where reports say anything that is not known without them."""
    keywords = item.stash.get(_COLLECTED, None)
    if keywords is None or tuple(report.when for report in reports) != _PHASES or not _only_pytest(item):
        return None
    times = []
    for report in reports:
        if (
            type(report) is not pytest.TestReport
            or vars(report).keys() != _USUAL
            or report.outcome != "passed"
            or report.longrepr is not None
            or report.sections
            or report.user_properties
            or report.keywords != keywords
            or report.nodeid != item.nodeid
            or report.location != item.location
        ):
            return None
        times.append((report.start, report.stop, report.duration))
    return tuple(times)


def _only_pytest(item: pytest.Item) -> bool:
    """Whether no plugin has a say in how reports travel."""
    hook = item.config.hook
    return all(
        str(getattr(one.function, "__module__", "")).startswith("_pytest.")
        for caller in (hook.pytest_report_to_serializable, hook.pytest_report_from_serializable)
        for one in caller.get_hookimpls()
    )
