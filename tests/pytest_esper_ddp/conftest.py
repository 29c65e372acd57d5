"""Sessions in subprocesses for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pytest_esper_ddp.inner import Inner, inner_session


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[Inner]:
    """Runs inner tests; afterwards none of their processes may be alive."""
    with inner_session(tmp_path) as session:
        yield session


@pytest.fixture(scope="module")
def inner_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inner]:
    """As `inner`, for one inner run that many tests look at."""
    with inner_session(tmp_path_factory.mktemp("inner")) as session:
        yield session
