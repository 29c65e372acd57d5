"""Values of the user's on their way from a rank to pytest: as they are, or else by their repr."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

_PLAIN = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class Foreign:
    """A value whose class may not exist at the other end: how it looks, and itself if it can travel. It comes
    out of a pickle as the value, or as its repr.
    """

    shown: str
    data: bytes | None

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.shown, self.data)


def packed(value: object) -> object:
    """A copy that pickles, and unpickles, whatever is in it: what can't arrives as its repr."""
    if type(value) in _PLAIN:
        return value
    if type(value) in (list, tuple):
        return type(value)(packed(part) for part in value)  # type: ignore[attr-defined,call-arg]
    if type(value) is dict:
        return {key: packed(part) for key, part in value.items()}
    try:
        return Foreign(_shown(value), pickle.dumps(value))
    except Exception:  # noqa: BLE001  whatever pickling an object of the user's does
        return Foreign(_shown(value), None)


def _restored(shown: str, data: bytes | None) -> Any:
    try:
        return shown if data is None else pickle.loads(data)
    except Exception:  # noqa: BLE001  a class of a module that only ranks have
        return shown


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  the user's repr
        return f"<{type(value).__qualname__} without a repr: {type(error).__name__}>"
