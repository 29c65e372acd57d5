"""pytest's capture in a rank: its own, and where what is in it can be found when the rank dies."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import suppress

import pytest
from _pytest.capture import CaptureIO


class _InFile(CaptureIO):
    """What --capture=sys has, with a file where that has memory."""

    @classmethod
    def becomes(cls, stream: CaptureIO) -> None:
        """It stays the same object: there may be others that print to it."""
        stream.__class__ = cls
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  as long as the rank lives
        io.TextIOWrapper.__init__(stream, file, encoding="utf-8", newline="", write_through=True)

    def getvalue(self) -> str:
        """All that was printed and not taken yet."""
        return os.pread(self.fileno(), os.fstat(self.fileno()).st_size, 0).decode(errors="replace")


def own_capture(config: pytest.Config) -> None:
    """Forked ranks share the temporary files of the zygote's capture: what one writes, all would report."""
    capture = config.pluginmanager.getplugin("capturemanager")
    streams = getattr(capture, "_global_capturing", None)
    if streams is None:
        return
    for stream in (streams.out, streams.err):
        try:
            own, into = stream.tmpfile.fileno(), stream.targetfd
        except (AttributeError, io.UnsupportedOperation):
            with suppress(AttributeError):  # of --capture=no
                stream.snap()  # each rank has what was in it at the fork
                if type(stream.tmpfile) is CaptureIO:  # not one that prints at once, too
                    _InFile.becomes(stream.tmpfile)
            continue
        with tempfile.TemporaryFile(buffering=0) as new:
            captures = os.path.sameopenfile(own, into)
            os.dup2(new.fileno(), own, inheritable=False)
            if captures:
                os.dup2(new.fileno(), into)


def captured_files(config: pytest.Config) -> list[int]:
    """Where what this rank prints stays until a report takes it; none where nothing is captured."""
    streams = getattr(config.pluginmanager.getplugin("capturemanager"), "_global_capturing", None)
    try:
        return [getattr(streams, name).tmpfile.fileno() for name in ("out", "err")]
    except (AttributeError, io.UnsupportedOperation):
        return []
