"""Replacing a function from outside for the length of a test."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

Undo = Callable[[], None]


def wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Undo:
    """Replace `owner.name` by `wrapper(original)`; returns what puts the original back."""
    found = inspect.getattr_static(owner, name)
    inherited = name not in vars(owner)
    if isinstance(found, staticmethod | classmethod):
        setattr(owner, name, type(found)(wrapper(found.__func__)))
    else:
        setattr(owner, name, wrapper(found))
    # What a parent has is seen again when the child's own is gone.
    return partial(delattr, owner, name) if inherited else partial(setattr, owner, name, found)


def wrap_target(target: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Undo:
    """As `wrap`, for `package.module:Class.method` or `package.module:function`.

    Raises LookupError naming the part that does not exist.
    """
    module_name, _, path = target.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise LookupError(f"target {target!r}: no module {module_name!r} ({error})") from None
    *owners, name = path.split(".")
    for part in (*owners, name):
        if not hasattr(owner, part):
            raise LookupError(f"target {target!r}: {getattr(owner, '__name__', owner)!r} has no {part!r}")
        if part is not name:
            owner = getattr(owner, part)
    if not callable(getattr(owner, name)):
        raise LookupError(f"target {target!r}: {name!r} can't be called")
    return wrap(owner, name, wrapper)
