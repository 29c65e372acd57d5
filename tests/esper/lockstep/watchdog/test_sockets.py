"""What a verdict does to a process's own connections."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack

from esper.lockstep.watchdog.sockets import call_own_listeners


def test_every_listener_but_the_stores_is_called_for_every_place() -> None:
    with ExitStack() as stack:
        gloo, plain, store = (
            stack.enter_context(socket.create_server((host, 0), family=family))
            for host, family in (
                ("127.0.0.1", socket.AF_INET),
                ("::1", socket.AF_INET6),
                ("127.0.0.1", socket.AF_INET),
            )
        )
        call_own_listeners(3, besides=[store.getsockname()[1]])
        for listener in (gloo, plain):
            said = []
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    said.append(connection.makefile("rb").read())
            assert said == [struct.pack("=q", place) for place in range(3)]
        store.setblocking(False)
        try:
            store.accept()
        except BlockingIOError:
            pass
        else:
            raise AssertionError("the store was called")
