"""Faults of one collective call."""

from __future__ import annotations

from pytest_esper_ddp.scenario import Fault


def apply(fault: Fault) -> bool:
    """Whether the call is left out."""
    return fault.kind == "skip"
