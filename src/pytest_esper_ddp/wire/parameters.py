"""Whether two processes mean the same item by one node id: pure, and the same in both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

# Their text is the same in every process.
_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def parameter_digest(item: pytest.Item) -> str:
    """Tells two items of one node id apart: ids made from unordered sets match while their values differ."""
    text = "\n".join(f"{name}={stable_text(value)}" for name, value in sorted(parameters(item).items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest() if text else ""


def parameters(item: pytest.Item) -> Mapping[str, object]:
    """The item's parameters by name; none where it has none."""
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else callspec.params


def stable_text(value: object) -> str:
    """Text that is equal in two processes when the values are: of an object that may print its address or an
    unordered set, the type alone.
    """
    if type(value) in _PLAIN:
        return repr(value)
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(stable_text, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{stable_text(key)}: {stable_text(part)}' for key, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(stable_text, value))}]"
    return type(value).__qualname__
