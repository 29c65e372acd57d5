"""Frozen dataclasses as plain nested values, for JSON and files that are read without running code."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from esper.errors import BadState

_T = TypeVar("_T")
_TAG = "type"  # which class of a union it is
_PLAIN = frozenset({int, float, str, bool, type(None)})


def to_plain(value: Any) -> Any:
    """`value` as dicts, lists, numbers, strings and None."""
    kind: type = type(value)
    if kind in _PLAIN:  # most are: to ask such a value what else it may be takes ten times as long
        return value
    names = _names(kind)
    if names is not None:
        return {_TAG: kind.__name__, **{name: to_plain(getattr(value, name)) for name in names}}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    return value


@lru_cache(maxsize=64)
def type_hints(kind: type) -> dict[str, Any]:
    """Of a dataclass, by field; kept, since their texts are compiled each time."""
    return get_type_hints(kind)


@lru_cache(maxsize=64)
def _names(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass, None for any other type."""
    return tuple(each.name for each in fields(kind)) if is_dataclass(kind) else None


def from_plain(kind: type[_T], value: Any, where: str) -> _T:
    """What `to_plain` was given, a `kind`. Raises BadState, which names the place, for anything else."""
    result: _T = _decoded(kind, value, where)
    return result


def _decoded(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return _one_of(get_args(kind), value, where)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise BadState(where, value, f"a value of {kind.__name__}") from None
    if isinstance(kind, type) and type(value) is kind:
        return value
    if kind is float and type(value) is int:  # a whole number is one, also where a type says float
        return value
    raise BadState(where, value, f"of type {getattr(kind, '__name__', kind)}")


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if isinstance(value, Mapping):
        kinds = tuple(kind for kind in kinds if getattr(kind, "__name__", "") == value.get(_TAG))
    if len(kinds) != 1:
        raise BadState(where, value, "one of the types that belong here")
    return _decoded(kinds[0], value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    names = {each.name for each in fields(kind)}
    if not isinstance(value, Mapping) or set(value) != names | {_TAG} or value[_TAG] != kind.__name__:
        raise BadState(where, value, f"a {kind.__name__} with exactly {', '.join(sorted(names))}")
    hints = type_hints(kind)
    return kind(**{name: _decoded(hints[name], value[name], f"{where}.{name}") for name in names})


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise BadState(where, value, "a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise BadState(where, value, f"a list of {len(kinds)}")
    return tuple(
        _decoded(kind, each, f"{where}[{index}]")
        for index, (kind, each) in enumerate(zip(kinds, value, strict=True))
    )
