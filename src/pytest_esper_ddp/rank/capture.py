"""pytest's capture in a rank: its own, and where what is in it can be found when the rank dies."""

from __future__ import annotations

import io

import pytest


def own_capture(config: pytest.Config) -> None:
    """Forked ranks share the temporary files of the zygote's capture: what one writes, all would report."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
        capture.start_global_capturing()


def captured_files(config: pytest.Config) -> list[int]:
    """Where what this rank prints stays until a report takes it; none where no descriptors are captured."""
    streams = getattr(config.pluginmanager.getplugin("capturemanager"), "_global_capturing", None)
    try:
        return [getattr(streams, name).tmpfile.fileno() for name in ("out", "err")]
    except (AttributeError, io.UnsupportedOperation):
        return []
