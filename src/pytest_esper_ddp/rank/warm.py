"""What each rank would do anew after its fork, done before it: to start one took 50 ms of a processor."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch

from esper.lockstep.errors import InterceptionUnavailable
from esper.lockstep.rank.hooks import check_hooks
from esper.lockstep.rank.kernel import operators
from pytest_esper_ddp.rank.hooks import Hooks
from pytest_esper_ddp.rank.logs import relay_logs
from pytest_esper_ddp.rank.state import seed_all


@dataclass
class Done:
    """What this process, or the one that it is forked from, has found."""

    hooks: bool = False  # torch has all that lockstep needs


DONE = Done()


def warm_up(config: pytest.Config, items: Iterable[pytest.Item], seed: int) -> None:
    """Runs in the zygote when everything is collected; starts no thread and touches no device."""
    operators()
    with suppress(InterceptionUnavailable):  # the ranks say it
        check_hooks()
        DONE.hooks = True
    seed_all(seed)
    torch.get_default_device()
    if "numpy" in sys.modules:
        import numpy.random  # noqa: F401  9 ms
    relay_logs()
    Hooks.of(config)
    for item in items:
        item.location  # noqa: B018  which the item keeps
