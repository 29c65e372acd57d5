"""Names for what the following collectives are for."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

_OFF: AbstractContextManager[None] = nullcontext()


class _Current(threading.local):
    """The tag of the calling thread; `recording` is process-wide and switched by the interception."""

    tag: str | None = None


current = _Current()
_recording = False


def set_recording(on: bool) -> None:
    """Whether tags are kept; off, `tag` returns one shared context manager and costs some 50 ns."""
    global _recording  # noqa: PLW0603  torch is patched for the whole process, and so is this
    _recording = on


class _Tag:
    __slots__ = ("_name", "_outer")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._outer = current.tag
        current.tag = self._name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current.tag = self._outer


def tag(name: str) -> AbstractContextManager[None]:
    """Name the collectives issued inside: `with tag("gate:r0c1"): dist.all_reduce(vote)`.

    Two ranks in the same collective under different tags are a mismatch; that is what makes a swap of two
    calls of equal shape visible. A collective without a tag matches any. Tags nest, the innermost counts,
    and each thread has its own.
    """
    return _Tag(name) if _recording else _OFF
