"""What the examples need beyond the plugin."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def pytest_configure() -> None:
    """One sentence instead of an ImportError in each file."""
    if find_spec("sklearn") is None:
        raise pytest.UsageError(
            "the examples train on scikit-learn's bundled digits, and scikit-learn is not installed: "
            "pip install 'pytest-esper-ddp[train]'"
        )
