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
    if request.param == "ours":
        relay(monkeypatch)
    return _pytest.logging.catching_logs


def relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ours in force, to the end of the test."""
    monkeypatch.setattr(_pytest.logging, "catching_logs", _pytest.logging.catching_logs)
    monkeypatch.setattr(logging.Logger, "__setattr__", logging.Logger.__setattr__)
    relay_logs()


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


def test_one_that_was_only_a_name_so_far_is_heard(capture: type) -> None:
    name = f"aside{next(NUMBERS)}"
    logging.getLogger(f"{name}.child")
    caught(capture)
    logger = logging.getLogger(name)
    logger.propagate = False
    assert caught(capture, logger) == [[f"from {name}"]] * 2


class Moody(logging.Logger):
    """Propagates or not without being told to."""

    alone = False

    @property
    def propagate(self) -> bool:
        return not self.alone

    @propagate.setter
    def propagate(self, value: bool) -> None: ...


class Unheard(logging.Logger):
    """Assigns as it likes."""

    __setattr__ = object.__setattr__


@pytest.mark.parametrize("kind", [Moody, Unheard])
def test_a_logger_of_a_way_of_its_own_is_heard(
    capture: type, kind: type[Moody | Unheard], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = kind(f"aside{next(NUMBERS)}")
    logger.parent = logging.root
    monkeypatch.setitem(logging.root.manager.loggerDict, logger.name, logger)
    for alone in (False, True, False):
        if isinstance(logger, Moody):
            logger.alone = alone
        else:
            logger.propagate = not alone
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
    relay(monkeypatch)
    caught(_pytest.logging.catching_logs, logger)
    there = list(logger.handlers)
    assert there
    with _pytest.logging.catching_logs(Kept()):
        assert logger.handlers == there
    assert logger.handlers == there
