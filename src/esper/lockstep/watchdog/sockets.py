"""The connections of this process to other ranks, and their end: what a thread that waits in gloo wakes of.

Nothing of torch's interrupts it: not abort, not shutdown, not a time-out that is set later. Shut down, and
not closed, since gloo polls their numbers; and only those that are connected, since it aborts at a listener's
end. Not while anything is under way, and reading first: gloo wakes who has something to send at the end of
what it reads, and never after a write that failed.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from termios import FIONREAD, TIOCOUTQ

Endpoint = tuple[bytes, int]  # address as the kernel has it, port
_INODE = re.compile(r"socket:\[(\d+)\]")
# What gloo's peers say first: which of a group's connections this is.
_PLACE = struct.Struct("=q")
_PENDING = struct.Struct("@i")
_ANSWERS_WITHIN = 0.2  # seconds: nothing comes of a call to a listener whose queue is full
_ESTABLISHED = "01"
_FAMILIES = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6}


def shut_connections_to(
    pids: Iterable[int],
    ports: Iterable[int] = (),
    ends: Iterable[Endpoint] = (),
    how: int = socket.SHUT_RDWR,
) -> None:
    """Shut every connection of this process to a socket of one of those processes on this host, to one of
    these ports of any, or to one of those ends; `how`: as `socket.shutdown` has it.
    """
    for connection in _connections_to(pids, ports, ends):
        with suppress(OSError):
            connection.shutdown(how)


def under_way_to(pids: Iterable[int], ends: Iterable[Endpoint] = ()) -> list[tuple[int, int]]:
    """Of each of those connections the bytes that this process has not read and its peer has not taken."""
    return [
        (_pending(connection, FIONREAD), _pending(connection, TIOCOUTQ))
        for connection in _connections_to(pids, (), ends)
    ]


def _connections_to(
    pids: Iterable[int], ports: Iterable[int], ends: Iterable[Endpoint]
) -> Iterator[socket.socket]:
    theirs = {endpoint for pid in pids for endpoint in endpoints(pid)} | set(ends)
    wanted = set(ports)
    for number in _numbers(os.getpid()):
        with suppress(OSError), _stream(number) as connection:
            if connection is None:
                continue
            address, port = connection.getpeername()[:2]
            if (_packed(address), port) in theirs or port in wanted:
                yield connection


def _pending(connection: socket.socket, which: int) -> int:
    (pending,) = _PENDING.unpack(fcntl.ioctl(connection, which, bytes(_PENDING.size)))
    return int(pending)


def call_own_listeners(places: int, besides: Iterable[int] = ()) -> None:
    """Come to each port that this process listens at, but for those `besides`, as gloo's peer for each of so
    many places in a group, and leave: who waits there for a peer that never comes has one, and then none.
    """
    left_out = set(besides)
    for number in _numbers(os.getpid()):
        with suppress(OSError), _stream(number) as listener:
            if listener is None or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            address = listener.getsockname()
            for place in range(places if address[1] not in left_out else 0):
                with socket.socket(listener.family) as caller:
                    caller.settimeout(_ANSWERS_WITHIN)
                    caller.connect(address)
                    caller.sendall(_PLACE.pack(place))


@contextmanager
def _stream(number: int) -> Iterator[socket.socket | None]:
    """A file of this process as a TCP socket, by a number of its own; None where it is something else."""
    copy = os.dup(number)
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        yield None
        return
    with connection:
        stream = connection.type == socket.SOCK_STREAM and connection.family in _FAMILIES.values()
        yield connection if stream else None


def endpoints(pid: int) -> Iterator[Endpoint]:
    """The local ends of the connections of one process."""
    return (own for own, _ in _connections(pid))


def peers(pid: int) -> Iterator[Endpoint]:
    """The other ends of the connections of one process: of those that neither side has closed."""
    return (other for _, other in _connections(pid))


def _connections(pid: int) -> Iterator[tuple[Endpoint, Endpoint]]:
    own = set()
    for number in _numbers(pid):
        with suppress(OSError):
            match = _INODE.fullmatch(os.readlink(f"/proc/{pid}/fd/{number}"))
            if match is not None:
                own.add(match[1])
    for name in _FAMILIES:
        try:
            with open(f"/proc/{pid}/net/{name}") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            if row[3] == _ESTABLISHED and row[9] in own:
                yield _from_proc(row[1]), _from_proc(row[2])


def _numbers(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # gone, or another user's
        return []


def _from_proc(text: str) -> Endpoint:
    # Words of 32 bits, each in the machine's order.
    address, _, port = text.partition(":")
    words = bytes.fromhex(address)
    packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return _plain(packed), int(port, 16)


def _packed(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return _plain(socket.inet_pton(family, address.partition("%")[0]))


def _plain(packed: bytes) -> bytes:
    """An IPv4 address in IPv6's clothes is the same address."""
    mapped = b"\0" * 10 + b"\xff\xff"
    return packed.removeprefix(mapped) if len(packed) == 16 and packed.startswith(mapped) else packed
