"""Waits that a program polls but is committed to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Observer = tuple[Callable[[Any], None], Callable[[Any, bool], None]]

_OFF: AbstractContextManager[None] = nullcontext()
_observer: Observer | None = None


class _Current(threading.local):
    work: Any = None


current = _Current()


def set_observer(observer: Observer | None) -> None:
    """Who is told when a committed wait begins and ends; None: nobody records."""
    global _observer  # noqa: PLW0603  torch is patched for the whole process, and so is this
    _observer = observer


def awaiting(work: Any) -> AbstractContextManager[None]:
    """Say that this thread waits for `work` and will issue no other collective inside, however it polls.

    `work.wait(timeout)` in a loop looks like a program that may come back and do something else, so a wait
    cycle through it can only be suspected. Inside `with awaiting(work):` the whole block is one wait and the
    cycle is proved. An exception that leaves the block counts as the wait's failure.
    """
    return _OFF if _observer is None else _awaiting(work, _observer)


@contextmanager
def _awaiting(work: Any, observer: Observer) -> Iterator[None]:
    begun, ended = observer
    outer, current.work = current.work, work
    begun(work)
    failed = True
    try:
        yield
        failed = False
    finally:
        current.work = outer
        ended(work, failed)
