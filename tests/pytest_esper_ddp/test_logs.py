"""What captures logging in ranks is held against pytest's own, which it stands in for."""

from __future__ import annotations

import logging
from itertools import count

import _pytest.logging
import pytest

from pytest_esper_ddp.rank.logs import relay_logs

NUMBERS = count()


class Kept(logging.Handler):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(params=["pytest's own", "ours"])
def capture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """The class in force."""
    monkeypatch.setattr(_pytest.logging, "catching_logs", _pytest.logging.catching_logs)
    if request.param == "ours":
        relay_logs()
    return _pytest.logging.catching_logs


@pytest.fixture
def logger() -> logging.Logger:
    """A new one that doesn't propagate."""
    one = logging.getLogger(f"aside{next(NUMBERS)}")
    one.propagate = False
    return one


def caught(capture: type, *loggers: logging.Logger, level: int | None = None) -> list[list[str]]:
    """What the two captures of a phase have of a warning by each of the loggers."""
    inner, outer = Kept(), Kept()
    with capture(outer, level=level), capture(inner, level=level):
        for one in loggers:
            one.warning("from %s", one.name)
    return [outer.messages, inner.messages]


def test_both_captures_of_a_phase_have_it_once(capture: type, logger: logging.Logger) -> None:
    child = logger.getChild("child")
    said = [f"from {logger.name}", f"from {logger.name}.child", "from root"]
    for _phase in range(2):
        assert caught(capture, logger, child, logging.root) == [said, said]


def test_whoever_comes_to_propagate_is_heard_once(capture: type, logger: logging.Logger) -> None:
    for propagates in (False, True, False):
        logger.propagate = propagates
        assert caught(capture, logger) == [[f"from {logger.name}"]] * 2


def test_a_program_may_take_all_handlers_away(capture: type, logger: logging.Logger) -> None:
    caught(capture, logger)
    logger.handlers.clear()
    assert caught(capture, logger) == [[f"from {logger.name}"]] * 2


def test_levels_hold(capture: type, logger: logging.Logger) -> None:
    before = logging.root.level
    assert caught(capture, logger, logging.root, level=logging.ERROR) == [[], []]
    assert logging.root.level == before
    logger.setLevel(logging.INFO)
    assert caught(capture, logger, level=logging.WARNING) == [[f"from {logger.name}"]] * 2


def test_nothing_is_caught_between_phases(capture: type, logger: logging.Logger) -> None:
    kept = Kept()
    with capture(kept):
        pass
    logger.error("too late")
    assert kept.messages == []


def test_a_phase_changes_no_logger_that_it_finds_as_before(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pytest.logging, "catching_logs", _pytest.logging.catching_logs)
    relay_logs()
    caught(_pytest.logging.catching_logs, logger)
    there = list(logger.handlers)
    with _pytest.logging.catching_logs(Kept()):
        assert logger.handlers == there
    assert logger.handlers == there
