"""Values that must be equal on all ranks and that nobody can find by himself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_Hook = TypeVar("_Hook", bound=Callable[..., Any])
_AVERAGES = "_lockstep_averages"
_watched: dict[str, Callable[[], Any]] = {}
_recording = False


def start() -> None:
    """Take calls of `watch` from now on, and forget earlier ones."""
    global _recording  # noqa: PLW0603  torch is patched for the whole process, and so is this
    _recording = True
    _watched.clear()


def stop() -> None:
    """Let calls of `watch` pass without effect."""
    global _recording  # noqa: PLW0603
    _recording = False
    _watched.clear()


def watch(name: str, value: Any) -> None:
    """Have `value` compared across ranks at every synchronising forward, barrier and the end.

    `value` is a module or optimiser (its state_dict), a tensor, or a callable that returns one of these or
    any plain value: `watch("alpha", lambda: model.alpha)`. Modules, optimisers and tensors are not kept
    alive. A second call under one name replaces the first. Without lockstep it does nothing.
    """
    if not _recording:
        return
    if callable(value) and not hasattr(value, "state_dict"):
        _watched[name] = value
        return
    try:
        _watched[name] = weakref.ref(value)
    except TypeError:
        _watched[name] = lambda: value


def averaging(hook: _Hook) -> _Hook:
    """`hook`, known from now on as a communication hook of DDP that leaves the same gradients on all ranks.

    Others need not: replicas that have one are compared only in what is watched.
    """
    setattr(hook, _AVERAGES, True)
    return hook


def averages(hook: Callable[..., Any]) -> bool:
    """Whether `averaging` has been told so."""
    return getattr(hook, _AVERAGES, False)


def any_watched() -> bool:
    """Whether there is anything to compare."""
    return bool(_watched)


def values() -> Iterator[tuple[str, Any]]:
    """(name, present value) of all that is watched and still there."""
    for name, get in list(_watched.items()):
        try:
            value = get()
        except Exception as error:  # noqa: BLE001  the user's callable must not end the program it only watches
            value = f"{type(error).__name__}: {error}"
        if value is None and isinstance(get, weakref.ref):
            del _watched[name]
        else:
            yield name, value
