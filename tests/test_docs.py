"""The code in docs/ is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of(page: str) -> str:
    """All Python blocks of a page, in order: they make one module."""
    return "\n\n".join(_BLOCK.findall((DOCS / page).read_text()))


def test_every_kind_has_an_example_and_every_example_passes(pytester: pytest.Pytester) -> None:
    source = code_of("kinds.md")
    examples = re.findall(r"^def (test_\w+)", source, re.MULTILINE)
    kinds = set(re.findall(r'ddp_expect\("(\w+)"', source))
    from esper.lockstep.finding import PRECEDENCE

    assert kinds == set(PRECEDENCE)
    pytester.makepyfile(test_kinds=source)
    result = pytester.runpytest_subprocess("-v", timeout=60)
    result.assert_outcomes(passed=len(examples))
