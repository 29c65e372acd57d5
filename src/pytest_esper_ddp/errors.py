"""Our bug and the user's bug are two different things; the divergence that a test expects is neither."""

from __future__ import annotations


class HarnessError(RuntimeError):
    """The harness itself failed: a rank could not be started, a process of ours is gone."""


class RanksWarning(UserWarning):
    """Something that a test on ranks has done to them, or that befell them, which fails no test."""


class MarkerError(ValueError):
    """A marker that can't be obeyed; the message names the value and what is accepted."""
