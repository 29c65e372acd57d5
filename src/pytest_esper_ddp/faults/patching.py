"""Replacing a function from outside for the length of a test."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

Undo = Callable[[], None]
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def wrap(owner: Any, name: str, wrapper: Wrapper) -> Undo:
    """Replace `owner.name` by `wrapper(original)`; returns what puts the original back."""
    found = inspect.getattr_static(owner, name)
    inherited = name not in vars(owner)
    if isinstance(found, staticmethod | classmethod):
        setattr(owner, name, type(found)(wrapper(found.__func__)))
    else:
        setattr(owner, name, wrapper(found))
    # What a parent has is seen again when the child's own is gone.
    return partial(delattr, owner, name) if inherited else partial(setattr, owner, name, found)


def wrap_target(target: str, wrapper: Wrapper) -> Undo:
    """As `wrap`, for `package.module:Class.method` or `package.module:function`.

    Raises LookupError naming the part that does not exist.
    """
    return wrap(*resolve(target), wrapper)


def resolve(target: str) -> tuple[Any, str]:
    """The module or class that a target is looked up in, and its name there.

    Raises LookupError naming the part that does not exist.
    """
    module_name, _, path = target.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise LookupError(f"target {target!r}: no module {module_name!r} ({error})") from None
    except Exception as error:  # noqa: BLE001  whatever the module does when it is imported
        raise LookupError(
            f"target {target!r}: module {module_name!r} can't be imported ({type(error).__name__}: {error})"
        ) from None
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(_having(target, owner, part), part)
    if not callable(getattr(_having(target, owner, name), name)):
        raise LookupError(f"target {target!r}: {name!r} can't be called")
    return owner, name


def _having(target: str, owner: Any, part: str) -> Any:
    if not hasattr(owner, part):
        raise LookupError(f"target {target!r}: {getattr(owner, '__name__', owner)!r} has no {part!r}")
    return owner
