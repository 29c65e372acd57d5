"""The store at which the ranks of a world meet."""

from __future__ import annotations

import socket
from typing import Any


class Store:
    """A server in pytest's own process, which outlives each rank and is never forked.

    Worlds share one under a prefix each; only a program that joins by env:// has no prefix in it.
    A file would do, but a rank that waits for another's key looks there every 10 ms: to meet takes two ranks
    12 ms and four 16, here 4 and 10, and each group that a test makes as much again.
    """

    def __init__(self) -> None:
        self._server: Any = None

    @property
    def port(self) -> int:
        """Where it listens, from the first use on."""
        if self._server is None:
            from torch.distributed import TCPStore  # type: ignore[attr-defined]

            with socket.socket() as loopback:  # torch's own would listen to the whole network
                loopback.bind(("127.0.0.1", 0))
                loopback.listen(socket.SOMAXCONN)
                host, port = loopback.getsockname()
                self._server = TCPStore(
                    host,
                    port,
                    is_master=True,
                    wait_for_workers=False,
                    master_listen_fd=loopback.detach(),
                )
        number: int = self._server.port
        return number

    def close(self) -> None:
        """End the server; its ranks are gone by now."""
        self._server = None
