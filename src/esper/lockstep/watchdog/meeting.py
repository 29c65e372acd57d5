"""How the ranks of a job find each other's ledgers: through the job's store, and through nothing else."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from esper.lockstep.errors import StartError
from esper.lockstep.run.process import started

# Seconds that one question to the store may take: its server may be gone.
_STORE_ANSWERS = timedelta(seconds=10)


@dataclass(frozen=True)
class Member:
    """One rank: its process, the host that it runs on, and how many collectives each of its groups had seen
    when it began to record.
    """

    rank: int
    pid: int
    started: int | None  # when, as `run.process.started` has it
    host: str
    host_name: str
    positions: Mapping[str, int]


class Meeting:
    """This rank's part in one meeting of all; each `start` of a job is another."""

    def __init__(self, number: int, attempt: int) -> None:
        """`number`: how many such meetings this process has been to; `attempt`: which of the job's this is.
        Raises StartError without a group whose store has room for another connection.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise StartError("no process group", "call lockstep.start() after init_process_group()")
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._number, self._attempt = number, attempt
        self._store: Any = None
        if self.world_size == 1:
            return
        try:
            # A connection of its own: the program may wait in its one for ever.
            self._store = _second(c10d._get_default_store())
            self._store.set_timeout(_STORE_ANSWERS)
        except (RuntimeError, AttributeError) as error:
            kind = type(_innermost(c10d._get_default_store())).__name__
            reason = f"no second connection to it can be had ({_one_line(error)})"
            raise StartError(f"the job's store ({kind})", reason) from error
        self._found: dict[int, Member] = {}

    @cached_property
    def run(self) -> str:
        """This run's id, one for all ranks: 32 hexadecimal digits. Raises StartError without an answer."""
        if self.world_size == 1:
            return uuid.uuid4().hex
        try:
            return self._text(self._store.compare_set(self._key("run"), "", uuid.uuid4().hex))
        except RuntimeError as error:
            raise StartError("the job's store", _one_line(error)) from error

    def enter(self, me: Member) -> None:
        """Tell the others of this rank. Raises StartError without an answer."""
        if self.world_size == 1:
            self._found = {0: me}
            return
        try:
            self._store.set(self._key(str(me.rank)), json.dumps(asdict(me)))
        except RuntimeError as error:
            raise StartError("the job's store", _one_line(error)) from error

    def members(self) -> list[Member]:
        """Those who have come so far, by rank; never waits for one.

        torchrun's default rendezvous has one store for all attempts of a job: a process that has gone may be
        of the attempt before.
        """
        for rank in range(self.world_size):
            if rank not in self._found and self._store.check([self._key(str(rank))]):
                member = Member(**json.loads(self._text(self._store.get(self._key(str(rank))))))
                if member.host != host() or started(member.pid) == member.started:
                    self._found[rank] = member
        return [self._found[rank] for rank in sorted(self._found)]

    @property
    def complete(self) -> bool:
        """Whether all had come when `members` was called last."""
        return len(self._found) == self.world_size

    def put(self, name: str, value: str | bytes) -> None:
        """Leave something for the others. This and what follows raise RuntimeError where the store does not
        answer.
        """
        self._store.set(self._key(name), value)

    def put_first(self, name: str, value: str, before: str = "") -> str:
        """Put it in the place of `before` ("": of nothing), and return what is there then."""
        return self._text(self._store.compare_set(self._key(name), before, value))

    def look_up(self, names: Sequence[str]) -> list[str]:
        """What is under these names, all of which have been put there before."""
        keys = [self._key(name) for name in names]
        if self._store.has_extended_api():
            return [self._text(value) for value in self._store.multi_get(keys)]
        return [self._text(self._store.get(key)) for key in keys]

    def find(self, name: str) -> bytes | None:
        """What is under this name; None: nothing yet."""
        key = self._key(name)
        return bytes(self._store.get(key)) if self._store.check([key]) else None

    def take(self, name: str) -> bytes | None:
        """As `find`; it is there no more then."""
        found = self.find(name)
        if found is not None:
            self._store.delete_key(self._key(name))
        return found

    def leave(self) -> None:
        """Give the connection back, for good: with it a file that is a store goes, as without a watchdog."""
        self._store = None

    def store_ports(self) -> list[int]:
        """Where the job's store listens: who waits in it can be woken by the end of the connection."""
        port = getattr(_innermost(c10d._get_default_store()), "port", None) if dist.is_initialized() else None
        return [] if port is None else [port]

    def _key(self, name: str) -> str:
        return f"esper.lockstep/{self._attempt}/{self._number}/{name}"

    def _text(self, value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)


def this_member(rank: int) -> Member:
    """This process, as the others need to know it."""
    return Member(rank, os.getpid(), started(os.getpid()), host(), socket.gethostname(), _positions())


def host() -> str:
    """What processes have in common that see each other's ids and memory: one boot, one space of process
    ids.
    """
    parts = []
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        parts.append(file.read().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts) or socket.gethostname()


def _positions() -> dict[str, int]:
    """How many collectives each group of this rank has issued, as its backend counts them."""
    found: dict[str, int] = {}
    for group in c10d._world.pg_map:
        with suppress(RuntimeError):  # a backend that does not count them
            found[group.group_name] = int(group._get_sequence_number_for_group())  # type: ignore[attr-defined]
    return found


def _innermost(store: Any) -> Any:
    while isinstance(store, c10d.PrefixStore):
        store = store.underlying_store
    return store


def _second(store: Any) -> Any:
    """A second connection takes as long as the first one's time-out, minutes, where the server is gone."""
    before = store.timeout
    store.set_timeout(_STORE_ANSWERS)
    try:
        return store.clone()
    finally:
        store.set_timeout(before)


def _one_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
