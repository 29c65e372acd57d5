"""Capture of logging without visiting each of torch's loggers twelve times a test.

torch has 42 loggers that don't propagate, 54 with dynamo. To those pytest adds a handler and takes it away,
twice in each phase: 0.2 ms a rank. Here one handler stays on them and hands on to whoever captures. To find
out which don't propagate is a look at each of 200, 17 us, so it is noticed when that is assigned.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

import _pytest.logging


class _Relay(logging.Handler):
    """On every logger that doesn't propagate; hands on to the handlers that would be there."""

    def __init__(self) -> None:
        super().__init__()
        self.to: list[logging.Handler] = []
        self.on: list[logging.Logger] = []
        self.entered_from: FrameType | None = None
        # Whether a logger may have come to propagate, or no longer to, since all were looked at.
        self.changed = True
        self._known = 0

    def handle(self, record: logging.LogRecord) -> Any:
        for handler in self.to:
            if record.levelno >= handler.level:
                handler.handle(record)
        return True

    def follow(self) -> None:
        """Be where the loggers are now: any may have come to propagate, or no longer to, and any program may
        take all handlers away.
        """
        if self.changed or len(logging.root.manager.loggerDict) != self._known:
            self.changed = False  # first: another thread may just assign it
            self._look()
        for logger in self.on:
            if self not in logger.handlers:
                logger.addHandler(self)

    def _look(self) -> None:
        every = list(logging.root.manager.loggerDict.values())
        self._known = len(every)
        loggers = [one for one in every if isinstance(one, logging.Logger)]
        # Where a class of loggers has this in a way of its own, it may change without a word.
        self.changed |= any(map(_own_way, {one.__class__ for one in loggers}))
        for logger in self.on:
            if logger.propagate:
                logger.removeHandler(self)
        self.on = [one for one in loggers if not one.propagate]

    def notice_changes(self) -> None:
        """Be told of each assignment, with which new loggers begin, too."""
        assign = logging.Logger.__setattr__

        def assigning(logger: logging.Logger, name: str, value: object) -> None:
            assign(logger, name, value)
            if name == "propagate":
                self.changed = True

        logging.Logger.__setattr__ = assigning  # type: ignore[assignment,method-assign]


def _own_way(kind: type[logging.Logger]) -> bool:
    return hasattr(kind, "propagate") or kind.__setattr__ is not logging.Logger.__setattr__


def relay_logs() -> None:
    """From now on, where pytest has what this stands in for: before version 9 it added nothing to them."""
    original = _pytest.logging.catching_logs
    if "attached_loggers" not in original.__slots__:
        return
    relay = _Relay()
    relay.notice_changes()
    relay.follow()

    class Catching(original):  # type: ignore[valid-type,misc]
        """As pytest's own, to the root logger; all others have the relay."""

        def __enter__(self) -> Any:
            root = logging.root
            if self.level is not None:
                self.handler.setLevel(self.level)
                self.orig_level = root.level
                root.setLevel(min(self.orig_level, self.level))
            root.addHandler(self.handler)
            # The two captures of a phase come from one frame, and nothing runs between them.
            if relay.entered_from is not (frame := sys._getframe(1)):
                relay.follow()
                relay.entered_from = frame
            relay.to.append(self.handler)
            return self.handler

        def __exit__(self, *error: object) -> None:
            if self.level is not None:
                logging.root.setLevel(self.orig_level)
            logging.root.removeHandler(self.handler)
            relay.to.remove(self.handler)
            relay.entered_from = None

    _pytest.logging.catching_logs = Catching  # type: ignore[misc]
