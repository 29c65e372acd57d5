"""Nothing in a module changes once it is imported: two trainers in one process share no setting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "esper"
PACKAGES = ("lifecycle", "model", "control", "distributed", "training")
# Filled while blueprints register; all trainers of a process know the same ones.
ALLOWED = {"model/blueprints/registry.py: _REGISTRY"}
MUTABLE = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
# Calls whose values cannot be changed, or are types and loggers.
SAFE = {
    "MappingProxyType", "frozenset", "tuple", "TypeVar", "getLogger", "compile", "Struct", "log", "float",
    "timedelta", "len", "fields", "max",
}  # fmt: skip


def mutable_state(text: str) -> Iterator[str]:
    """Names of a module that hold something mutable, and `global` statements."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"global {', '.join(node.names)}"
    bodies = [tree.body, *(each.body for each in tree.body if isinstance(each, ast.ClassDef))]
    for body in bodies:
        for statement in body:
            value = getattr(statement, "value", None)
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and value is not None and changeable(value):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names = [ast.unparse(target) for target in targets]
                if names not in (["__all__"], ["__slots__"]):
                    yield ", ".join(names)


def changeable(value: ast.expr) -> bool:
    if isinstance(value, MUTABLE):
        return True
    if not isinstance(value, ast.Call):
        return False
    called = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
    return called not in SAFE | {"field"}


def found_in(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root).as_posix()}: {name}"
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        for name in mutable_state(path.read_text(encoding="utf-8"))
    ]


def test_no_module_has_state() -> None:
    assert set(found_in(SRC)) == ALLOWED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CACHE = {}", "CACHE"),
        ("seen: list[int] = []", "seen"),
        ("A = B = set()", "A, B"),
        ("counter = itertools.count()", "counter"),
        ("class C:\n    known = []", "known"),
        ("def f():\n    global flag\n    flag = True", "global flag"),
    ],
)
def test_planted_state_is_found(text: str, said: str) -> None:
    assert list(mutable_state(text)) == [said]


@pytest.mark.parametrize(
    "text",
    [
        "X = 3",
        "Y = MappingProxyType({1: 2})",
        "Z = frozenset({1})",
        "__all__ = ['a']",
        "L = logging.getLogger('a')",
    ],
)
def test_what_cannot_change_is_not(text: str) -> None:
    assert list(mutable_state(text)) == []
