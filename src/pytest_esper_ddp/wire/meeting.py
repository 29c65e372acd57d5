"""Where launched ranks find the process that reports: its socket, by a name in the launcher's store."""

from __future__ import annotations

import os
import socket
import struct
from datetime import timedelta
from typing import Any

from pytest_esper_ddp.launch import Place

_WITHIN = timedelta(seconds=120)  # all of them import torch meanwhile
_CREDENTIALS = struct.Struct("3i")


def store_of(place: Place) -> Any:
    """The launcher's store."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore(
        place.host, place.port, is_master=place.store_is_here, wait_for_workers=False, timeout=_WITHIN
    )
    return PrefixStore(f"pytest-ddp/{place.attempt}", store)


def is_ours(channel: socket.socket) -> bool:
    """Whether the process at the other end is of this user: the names of such sockets are no secret."""
    data = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(data)[1] == os.getuid())
