"""Faults of one call of any function: left out, repeated, or made with something else."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from pytest_esper_ddp.faults.patching import Undo, resolve, wrap
from pytest_esper_ddp.faults.process import InjectedFault
from pytest_esper_ddp.scenario import Fault

Function = Callable[..., Any]


def arm(fault: Fault, fire: Callable[[], None]) -> Undo:
    """Replace the target for the length of the test; its n-th call on this rank (the first, unless given) is
    the one.
    """
    owner, name = resolve(str(fault.target))
    act = KINDS[fault.kind]
    seen = 0

    def wrapper(original: Function) -> Function:
        place = _place(fault, owner, name)

        @wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen != (fault.nth or 1):
                return original(*args, **kwargs)
            if fault.kind == "change_argument":
                args, kwargs = _with(args, kwargs, place, fault.arguments["value"])
            fire()
            return act(fault, original, args, kwargs)

        return counted

    return wrap(owner, name, wrapper)


def check(fault: Fault) -> None:
    """Raises LookupError, in one sentence, when the target is not there or has no such argument."""
    owner, name = resolve(str(fault.target))
    if fault.kind == "change_argument":
        _place(fault, owner, name)


def _raise(fault: Fault, original: Function, args: Any, kwargs: Any) -> Any:
    raise InjectedFault(fault.arguments.get("message", "injected"))


def _repeat(fault: Fault, original: Function, args: Any, kwargs: Any) -> Any:
    original(*args, **kwargs)
    return original(*args, **kwargs)


def _delay(fault: Fault, original: Function, args: Any, kwargs: Any) -> Any:
    time.sleep(fault.arguments["seconds"])
    return original(*args, **kwargs)


def _change_result(fault: Fault, original: Function, args: Any, kwargs: Any) -> Any:
    original(*args, **kwargs)
    return fault.arguments["value"]


KINDS: dict[str, Callable[[Fault, Function, Any, Any], Any]] = {
    "skip_call": lambda fault, original, args, kwargs: fault.arguments.get("value"),
    "repeat_call": _repeat,
    "raise_in": _raise,
    "delay_in": _delay,
    "change_argument": lambda fault, original, args, kwargs: original(*args, **kwargs),
    "change_result": _change_result,
}


# Where an argument is: its place among those given by place, and its name. One of them may be unknown.
_Place = tuple[int | None, str | None]


def _place(fault: Fault, owner: Any, name: str) -> _Place:
    """Where the argument is that changes; `index` counts as the caller writes it, without self.

    Raises LookupError when the function has no such argument.
    """
    wanted, index = fault.arguments.get("name"), fault.arguments.get("index")
    if wanted is None and index is None:
        return None, None
    found = inspect.getattr_static(owner, name)
    function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
    bound = inspect.isclass(owner) and not isinstance(found, staticmethod)
    at = None if index is None else index + bound
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C, and silent about it
        return at, wanted
    kinds = inspect.Parameter
    placed = [one for one in parameters if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    names = [one.name for one in placed]
    if at is not None:
        if at < len(placed):
            only_by_place = placed[at].kind is kinds.POSITIONAL_ONLY
            return at, None if only_by_place else names[at]
        if any(one.kind is kinds.VAR_POSITIONAL for one in parameters):
            return at, None
    elif wanted in names:
        return names.index(wanted), wanted
    elif any(one.kind is kinds.VAR_KEYWORD or one.name == wanted for one in parameters):
        return None, wanted
    has = ", ".join(str(one) for one in parameters[bound:]) or "none"
    said = f"at index {index}" if wanted is None else repr(wanted)
    raise LookupError(f"target {fault.target!r}: {name!r} has no argument {said}; it has: {has}")


def _with(args: Any, kwargs: dict[str, Any], place: _Place, value: Any) -> tuple[Any, dict[str, Any]]:
    at, name = place
    if at is not None and at < len(args):
        return (*args[:at], value, *args[at + 1 :]), kwargs
    if name is None:
        raise LookupError(f"argument {at} was not given by place in the call that was to be changed")
    return args, {**kwargs, name: value}
