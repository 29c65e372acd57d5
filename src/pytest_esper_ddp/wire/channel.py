"""Pickled messages over a socket pair, length first. Both ends are ours, on one machine, of one user."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_LENGTH = struct.Struct("<I")
_CHUNK = 1 << 16


class Closed(ConnectionError):
    """The other end is gone."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a message whose parts this process can't make: a class of theirs is not here."""

    reason: str


class Inbox:
    """Messages as they come. Who sends one may be stopped in the middle of it: nothing here waits."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._data = bytearray()

    def take(self, *, last: bool = False) -> list[Any]:
        """The messages that are whole by now; `last`: look until nothing is left. Raises Closed where none is
        and none will be.
        """
        ended = False
        while True:
            try:
                chunk = self._channel.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                chunk = b""
            self._data += chunk
            ended = not chunk
            if ended or (len(chunk) < _CHUNK and not last):
                break
        messages = list(self._whole())
        if ended and not messages:
            raise Closed("the other end is gone")
        return messages

    def _whole(self) -> Iterator[Any]:
        start, end = 0, len(self._data)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, start)
            if end - start < _LENGTH.size + length:
                break
            start += _LENGTH.size
            with memoryview(self._data)[start : start + length] as part:
                yield _loads(part)
            start += length
        del self._data[:start]


def _loads(data: memoryview) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:  # noqa: BLE001  whatever making an object of the user's does
        return Unreadable(f"{type(error).__name__}: {error}")


def send(channel: socket.socket, message: object) -> None:
    """Send one message. Raises Closed when nobody reads any more."""
    send_whole(channel, whole(message))


def whole(message: object) -> bytes:
    """A message as it travels, for whoever sends the same one to several."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def send_whole(channel: socket.socket, data: bytes) -> None:
    """Send what `whole` gave. Raises Closed when nobody reads any more."""
    try:
        channel.sendall(data)
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
