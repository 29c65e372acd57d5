"""What ranks have printed that no report has taken yet: it outlives them here."""

from __future__ import annotations

import os
import socket

_STREAMS = ("stdout", "stderr")
_MOST = 1 << 20  # bytes of what a rank printed at its end


class Captured:
    """The files of pytest's capture in each rank of a world."""

    def __init__(self) -> None:
        self._files: dict[int, list[int]] = {}

    def receive(self, rank: int, channel: socket.socket, count: int) -> None:
        """Take the files that a rank has sent behind a message; none where it captures no descriptors."""
        if count:
            self._files[rank] = socket.recv_fds(channel, 1, count, socket.MSG_CMSG_CLOEXEC)[1]

    def printed(self, rank: int) -> list[tuple[str, str]]:
        """Sections for a report."""
        found = []
        for stream, fd in zip(_STREAMS, self._files.get(rank, ()), strict=False):
            size = os.fstat(fd).st_size
            if size:
                text = os.pread(fd, _MOST, max(0, size - _MOST)).decode(errors="replace")
                found.append((f"Captured {stream} until the end", text))
        return found

    def close(self) -> None:
        """The ranks are gone."""
        while self._files:
            for fd in self._files.popitem()[1]:
                os.close(fd)
