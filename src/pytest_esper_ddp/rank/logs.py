"""Capture of logging without visiting each of torch's loggers twelve times a test.

torch has 42 loggers that don't propagate, 54 with dynamo. To those pytest adds a handler and takes it away,
twice in each phase: 0.2 ms a rank. Here one handler stays on them and hands on to whoever captures.
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

    def handle(self, record: logging.LogRecord) -> Any:
        for handler in self.to:
            if record.levelno >= handler.level:
                handler.handle(record)
        return True

    def follow(self) -> None:
        """Be where the loggers are now: any may have come to propagate, or no longer to."""
        place = logging.PlaceHolder
        every = logging.root.manager.loggerDict.values()
        now = [one for one in every if one.__class__ is not place and not one.propagate]  # type: ignore[union-attr]
        for logger in self.on:
            if logger.propagate:
                logger.removeHandler(self)
        self.on = now  # type: ignore[assignment]
        for logger in self.on:
            if self not in logger.handlers:
                logger.addHandler(self)


def relay_logs() -> None:
    """From now on, where pytest has what this stands in for: before version 9 it added nothing to them."""
    original = _pytest.logging.catching_logs
    if "attached_loggers" not in original.__slots__:
        return
    relay = _Relay()

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
