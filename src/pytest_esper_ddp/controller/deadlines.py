"""Our deadline is the inner one: pytest-timeout's ends the session, or the test without a word on ranks."""

from __future__ import annotations

import faulthandler
from dataclasses import dataclass

import pytest

# Of their seconds: what is left is for asking the ranks where they are, and for ending them.
_INNER = 0.8


@dataclass(frozen=True)
class Deadline:
    """Seconds from the start of a test on ranks, and why they are not those that its plan has."""

    seconds: float
    note: str = ""


def deadline_of(item: pytest.Item, planned: float) -> Deadline:
    """The test's own time-out, or what comes before the clocks that other plugins have set for the item."""
    theirs = {"pytest-timeout's": _timeout(item), "faulthandler_timeout's": _faulthandler(item.config)}
    source, seconds = min(theirs.items(), key=lambda one: one[1])
    if planned <= _INNER * seconds:
        return Deadline(planned)
    note = f"{_INNER * seconds:g} s instead of {planned:g}, to come before {source} {seconds:g} s"
    return Deadline(_INNER * seconds, note)


def stop_other_clocks(item: pytest.Item) -> None:
    """From here on ours is the item's: theirs would end the session while it is said where the ranks are."""
    if item.config.pluginmanager.hasplugin("timeout"):
        item.config.pluginmanager.hook.pytest_timeout_cancel_timer(item=item)
    if _faulthandler(item.config) < float("inf"):
        faulthandler.cancel_dump_traceback_later()


def _timeout(item: pytest.Item) -> float:
    if not item.config.pluginmanager.hasplugin("timeout"):
        return float("inf")
    import pytest_timeout  # type: ignore[import-untyped]

    return pytest_timeout._get_item_settings(item).timeout or float("inf")


def _faulthandler(config: pytest.Config) -> float:
    """Without `faulthandler_exit_on_timeout` it prints stacks and ends nothing."""
    try:
        if not config.getini("faulthandler_exit_on_timeout"):
            return float("inf")
        return float(config.getini("faulthandler_timeout") or "inf")
    except (KeyError, ValueError):  # no such plugin, or one that can't exit
        return float("inf")
