"""Rules of the house that no linter holds."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src"
MOST_LINES = 400
# What talks to a person by itself; all else returns its text or writes to a stream that it was given.
MAY_PRINT = ("*/cli.py", "*/__main__.py", "pytest_esper_ddp/report/*.py")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def lapses(root: Path) -> list[str]:
    """Every place under this folder that breaks a rule, a line each."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        found += [
            f"{name}{lapse}" for lapse in lapses_in(path.read_text(encoding="utf-8"), may_print=prints(name))
        ]
    return found


def prints(name: str) -> bool:
    return any(Path("/", name).match(pattern) for pattern in MAY_PRINT)


def lapses_in(text: str, *, may_print: bool) -> Iterator[str]:
    lines = text.count("\n")
    if lines > MOST_LINES:
        yield f": {lines} lines; over {MOST_LINES} asks for a split"
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and not may_print
        ):
            yield f":{node.lineno}: print() is for {', '.join(MAY_PRINT)}"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and (match := UNFINISHED.search(token.string)):
            yield f":{token.start[0]}: {match[1]} in a comment; finish it, or write it up"


def test_the_sources_keep_to_the_rules() -> None:
    assert lapses(SRC) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("esper/a.py", "x = 1\n" * 401, "esper/a.py: 401 lines"),
        ("esper/a.py", "def f():\n    print('x')\n", "esper/a.py:2: print() is for"),
        ("esper/a.py", "x = 1  # TODO: later\n", "esper/a.py:1: TODO in a comment"),
    ],
)
def test_a_planted_lapse_is_found(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (found,) = lapses(tmp_path)
    assert found.startswith(said)


@pytest.mark.parametrize(
    "name", ["esper/cli.py", "esper/lockstep/__main__.py", "pytest_esper_ddp/report/terminal.py"]
)
def test_who_talks_to_a_person_may_print(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text("print('x')\nlog = 'TODO is fine in a string'\n")
    assert lapses(tmp_path) == []
