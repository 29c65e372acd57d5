"""Pickled messages over a socket pair, length first. Both ends are ours, on one machine, of one user."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<I")


class Closed(ConnectionError):
    """The other end is gone."""


def send(channel: socket.socket, message: object) -> None:
    """Send one message. Raises Closed when nobody reads any more."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        channel.sendall(_LENGTH.pack(len(data)) + data)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed("the other end is gone") from error


def receive(channel: socket.socket) -> Any:
    """Wait for one whole message. Raises Closed at the end of the stream."""
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    return pickle.loads(_exactly(channel, length))


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        try:
            chunk = channel.recv(count - len(data))
        except ConnectionResetError as error:
            raise Closed("the other end is gone") from error
        if not chunk:
            raise Closed("the other end is gone")
        data += chunk
    return bytes(data)
