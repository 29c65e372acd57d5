"""Our bug and the user's bug are two different things; the divergence that a test expects is neither."""

from __future__ import annotations


class HarnessError(RuntimeError):
    """The harness itself failed: a rank could not be started, a process of ours is gone."""


class MarkerError(ValueError):
    """A marker that can't be obeyed; the message names the value and what is accepted."""
