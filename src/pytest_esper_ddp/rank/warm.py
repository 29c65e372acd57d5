"""What each rank would do anew after its fork, done before it: to start one took 50 ms of a processor."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache

import pytest
import torch

from pytest_esper_ddp.rank.hooks import Hooks
from pytest_esper_ddp.rank.joining import sources_of_names
from pytest_esper_ddp.rank.logs import relay_logs
from pytest_esper_ddp.rank.passing import remember_keywords
from pytest_esper_ddp.rank.recording import install_early
from pytest_esper_ddp.rank.state import seed_all


def warm_up(session: pytest.Session, items: Iterable[pytest.Item], seed: int) -> None:
    """Runs in the zygote when everything is collected; starts no thread and touches no device."""
    config = session.config
    install_early(config)
    torch.get_default_device()
    if "numpy" in sys.modules:
        import numpy.random  # noqa: F401  9 ms
    seed_all(seed)
    relay_logs()
    sources_of_names()
    Hooks.of(config)
    # Which conftest files a path has is settled by now, and pytest asks eleven times a test.
    session.gethookproxy = cache(session.gethookproxy)  # type: ignore[method-assign,assignment]
    for item in items:
        item.location, item.ihook  # noqa: B018  which are kept
        remember_keywords(item)
