"""The end of this process's groups on NCCL: what a thread that waits for a stream of a GPU wakes of.

By the backends' own `abort` and not `torch.distributed`'s of a group, which also forgets the group: the
program may still ask for its rank, and destroys its groups by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch.distributed import distributed_c10d as c10d

NCCL = "nccl"


def backends(name: str) -> list[Any]:
    """The backends of this name that this process's groups have, those of the newest group first: a group
    that was split from another goes before that one.
    """
    found: list[Any] = []
    for group in reversed(list(c10d._world.pg_map)):
        for device in group._device_types:
            with suppress(RuntimeError):  # it is being made
                backend = group._get_backend(device)
                # One that serves several kinds of devices comes once for each.
                if backend.name() == name and not any(backend is one for one in found):
                    found.append(backend)
    return found


class Aborting(threading.Thread):
    """Aborts them. It may never come back, so nobody has to wait for it."""

    def __init__(self, backends: Sequence[Any]) -> None:
        super().__init__(name="esper.lockstep abort", daemon=True)
        self._backends = backends

    def run(self) -> None:
        """Until all are aborted. Where one can't be, its process is ended after a while."""
        with suppress(RuntimeError), _together(self._backends[-1]):
            for backend in self._backends:
                backend.abort()


@contextmanager
def _together(backend: Any) -> Iterator[None]:
    """One after the other, aborts of several communicators wait for each other's on other ranks."""
    backend = getattr(backend, "wrapped_pg", backend)  # with TORCH_DISTRIBUTED_DEBUG=DETAIL
    if not hasattr(backend, "_group_start"):
        yield
        return
    backend._group_start()
    try:
        yield
    finally:
        backend._group_end()
