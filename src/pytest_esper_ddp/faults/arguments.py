"""Whether the arguments of a fault can be obeyed: wrong ones would end the rank in the middle of the test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_esper_ddp.errors import MarkerError

# The values that an argument may have, the first of them by default.
_CHOICES = {"where": ("result", "input"), "allocator": ("torch", "python")}
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_OF_PLAIN = (list, tuple, set, frozenset, dict)


def check_arguments(written: str, kind: str, arguments: Mapping[str, Any]) -> None:
    """Raises MarkerError naming the first value that is not accepted, and what is."""
    for name, value in arguments.items():
        if name.endswith("seconds") and not (name == "for_seconds" and value is None):
            check_seconds(written, name, value)
        elif name == "code" and not _whole(value, 0, 255):
            raise MarkerError(f"{written}: code={value!r} must be an exit status, 0 to 255")
        elif name == "index" and not _whole(value, 0):
            raise MarkerError(f"{written}: index={value!r} must be an integer >= 0")
        elif name in ("name", "message") and not isinstance(value, str):
            raise MarkerError(f"{written}: {name}={value!r} must be text")
        elif name in _CHOICES and value not in _CHOICES[name]:
            accepted = ", ".join(map(repr, _CHOICES[name]))
            raise MarkerError(f"{written}: {name}={value!r} must be one of {accepted}")
        elif name == "value" and not _plain(value):
            raise MarkerError(
                f"{written}: value={value!r} must be plain data, which can be sent to a rank: None, numbers, "
                "text, bytes, and lists, tuples, sets or dicts of these"
            )
    if kind == "change_argument" and ("name" in arguments) == ("index" in arguments):
        raise MarkerError(f"{written}: change_argument needs either name or index")


def check_seconds(written: str, name: str, value: object) -> float:
    """Seconds as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise MarkerError(f"{written}: {name}={value!r} must be a number of seconds > 0")
    return float(value)


def _whole(value: object, least: int, most: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _plain(value: object) -> bool:
    if type(value) in _PLAIN:
        return True
    if isinstance(value, dict) and type(value) is dict:
        return all(_plain(key) and _plain(part) for key, part in value.items())
    return type(value) in _OF_PLAIN and all(map(_plain, value))  # type: ignore[call-overload]
