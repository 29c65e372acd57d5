"""What a test may change in a rank that lives on: put back, or named as a leak that can't be."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

# A thread that ends by itself is no leak: closing a gloo group takes one 10 ms for each connection. Nor is a
# socket that closes with the last look at its owner.
_ENDING = 0.5  # seconds
_LOOK_EVERY = 0.005
_OPEN = "/proc/self/fd"
_MOST_NAMED = 5
_Found = TypeVar("_Found", bound=Collection[Any])
_seeded: set[int] = set()


def seed_all(seed: int) -> None:
    """Seed the generators; those of devices as soon as one is used, in forked processes, too."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    _seeded.clear()
    _seeded.add(seed)


def seed_rank(seed: int) -> None:
    """Seed the generators in a rank, unless they were before it was forked: 2 ms."""
    if seed in _seeded and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.default_generator.manual_seed(seed)
        random.seed(seed)  # which a fork seeds anew
    else:
        seed_all(seed)


@dataclass
class State:
    """What of a rank a test may change and what it may leave behind, besides random generators."""

    environment: dict[bytes, bytes]
    directory: str
    dtype: torch.dtype
    device: torch.device
    deterministic: bool
    threads_of_torch: int
    gradients: bool
    threads: Collection[int | None]
    groups: Collection[str]
    sockets: Collection[str]

    @classmethod
    def now(cls) -> State:
        """As it is."""
        return cls(
            environment=dict(_raw_environment()),
            directory=_directory(),
            dtype=torch.get_default_dtype(),
            device=torch.get_default_device(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            threads_of_torch=torch.get_num_threads(),
            gradients=torch.is_grad_enabled(),
            threads={thread.ident for thread in threading.enumerate()},
            groups=set(c10d._world.pg_names.values()),
            sockets=set(_sockets()),
        )

    def adopt(self, before: State, after: State) -> None:
        """Make a change part of this state."""
        for name in (field.name for field in fields(self)):
            mine, one, other = getattr(self, name), getattr(before, name), getattr(after, name)
            if isinstance(mine, set):
                setattr(self, name, (mine | other) - (one - other))
            elif isinstance(mine, dict):
                changed = {key: value for key, value in other.items() if one.get(key) != value}
                kept = {key: value for key, value in mine.items() if key in other or key not in one}
                setattr(self, name, kept | changed)
            elif one != other:
                setattr(self, name, other)


class _NumpyGenerator:
    """numpy's global generator. To put its state back takes 36 us, and few tests draw from it: first the
    memory is compared that its numbers come from.
    """

    _SIZE = 625 * 4  # MT19937: 624 words, and which of them is next

    def __init__(self) -> None:
        self._random: Any = sys.modules["numpy"].random
        self._state = self._random.get_state()
        self._generator = self._random.get_bit_generator()
        self._address = self._generator.ctypes.state_address
        self._words = ctypes.string_at(self._address, self._SIZE)

    def restore(self) -> None:
        """Back to that state."""
        if self._random.get_bit_generator() is not self._generator:
            self._random.set_bit_generator(self._generator)
        if ctypes.string_at(self._address, self._SIZE) != self._words:
            self._random.set_state(self._state)


class Snapshot:
    """The state of a fresh rank, and of fixtures that are wider than one test."""

    def __init__(self) -> None:
        self._numpy = _NumpyGenerator() if "numpy" in sys.modules else None
        self._torch_state = torch.default_generator.get_state()
        self._seed = torch.default_generator.initial_seed()
        self._random_state = random.getstate()
        self._kept = State.now()
        self._descriptors = _count_descriptors()
        self._default = dist.group.WORLD if dist.is_initialized() else None

    @contextmanager
    def adopting(self, add_finalizer: Callable[[Callable[[], object]], object]) -> Iterator[None]:
        """What is changed and left inside, and when the finalisers are called, is part of the state."""
        before, ending = State.now(), list[State]()
        # Finalisers run in the opposite order: this one after the fixture's own, the other one before.
        add_finalizer(lambda: self._adopt(ending.pop()))
        try:
            yield
        finally:
            self._adopt(before)
            add_finalizer(lambda: ending.append(State.now()))

    def _adopt(self, before: State) -> None:
        self._kept.adopt(before, State.now())
        self._descriptors = -1

    def restore(self) -> tuple[str, ...]:
        """Put back what can be; returns what can't: the world is then replaced. Costs some 40 us when nothing
        was changed.
        """
        kept = self._kept
        if _raw_environment() != kept.environment:
            os.environ.clear()
            os.environ.update(
                {os.fsdecode(key): os.fsdecode(value) for key, value in kept.environment.items()}
            )
        if _directory() != kept.directory:
            os.chdir(kept.directory)
        torch.default_generator.set_state(self._torch_state)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(self._seed)  # where those of a new rank begin
        random.setstate(self._random_state)
        if self._numpy is not None:
            self._numpy.restore()
        if torch.get_default_dtype() is not kept.dtype:
            torch.set_default_dtype(kept.dtype)
        if torch.get_default_device() != kept.device:
            torch.set_default_device(None if kept.device == torch.device("cpu") else kept.device)
        if torch.are_deterministic_algorithms_enabled() != kept.deterministic:
            torch.use_deterministic_algorithms(kept.deterministic)
        if torch.get_num_threads() != kept.threads_of_torch:
            torch.set_num_threads(kept.threads_of_torch)
        torch.set_grad_enabled(kept.gradients)
        return tuple(self._leaks())

    def _leaks(self) -> list[str]:
        leaks = []
        now = dist.group.WORLD if dist.is_initialized() else None
        if now is not self._default:
            leaks.append("the default process group destroyed or replaced")
        elif groups := self._settled(self._extra_groups):
            leaks.append(f"{len(groups)} process group{'s' if len(groups) > 1 else ''}")
        elif set(self._kept.groups) - set(c10d._world.pg_names.values()):
            leaks.append("a fixture's process group destroyed")
        if threads := self._lasting_threads():
            leaks.append(_listed("thread", [thread.name for thread in threads]))
        # The sockets of a group are no leak of their own.
        if not leaks and ((count := _count_descriptors()) != self._descriptors or count == 0):
            if sockets := self._settled(self._extra_sockets):
                leaks.append(_listed("open socket", [_told(*one) for one in sockets.items()]))
            self._descriptors = _count_descriptors()
        return leaks

    def _settled(self, extra: Callable[[], _Found]) -> _Found:
        """What is left of it once that has gone which ends by itself."""
        found = extra()
        if found:
            gc.collect()  # what only a cycle holds
            end = time.monotonic() + _ENDING
            while (found := extra()) and time.monotonic() < end:
                time.sleep(_LOOK_EVERY)
        return found

    def _lasting_threads(self) -> list[threading.Thread]:
        end = time.monotonic() + _ENDING
        while (extra := self._extra_threads()) and (left := end - time.monotonic()) > 0:
            extra[0].join(left)
        return extra

    def _extra_groups(self) -> list[str]:
        return [name for name in c10d._world.pg_names.values() if name not in self._kept.groups]

    def _extra_threads(self) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            # A dummy stands for a thread of C++ that has called Python, and stays when that has ended.
            if thread.ident not in self._kept.threads and not isinstance(thread, threading._DummyThread)
        ]

    def _extra_sockets(self) -> dict[str, int]:
        return {name: fd for name, fd in _sockets().items() if name not in self._kept.sockets}


def _raw_environment() -> dict[bytes, bytes]:
    # os.environ compares by decoding every entry, its own dict does not: 16 us against 0.3.
    return os.environ._data  # type: ignore[attr-defined, no-any-return]


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _count_descriptors() -> int:
    """How many files are open: 3 us against the 40 of a look at each; 0 where the system does not say."""
    try:
        return os.stat(_OPEN).st_size
    except OSError:
        return 0


def _sockets() -> dict[str, int]:
    """The open sockets by the name that the system has for each, and their descriptors."""
    found = {}
    try:
        names = os.listdir(_OPEN)
    except OSError:
        return {}
    for name in names:
        try:
            target = os.readlink(f"{_OPEN}/{name}")
        except OSError:  # the one that the list was read from
            continue
        if target.startswith("socket:"):
            found[target] = int(name)
    return found


def _told(name: str, fd: int) -> str:
    """Where a socket listens, or where it leads to."""
    try:
        with socket.socket(fileno=os.dup(fd)) as one:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return f"listening at {_address(one.getsockname())}"
            return f"to {_address(one.getpeername())}"
    except OSError:
        return f"descriptor {fd}"


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        return ":".join(map(str, address[:2]))
    return repr(address) if address else "its own pair"


def _listed(what: str, names: list[str]) -> str:
    """`thread a`, `2 threads (a, b)`, `50 threads (a, b, c, d, e, ...)`."""
    if len(names) == 1:
        return f"{what} {names[0]}"
    shown = names[:_MOST_NAMED] + (["..."] if len(names) > _MOST_NAMED else [])
    return f"{len(names)} {what}s ({', '.join(shown)})"
