"""The watchdog over a trainer's ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from esper import lockstep
from esper.checks import check_number
from esper.errors import ConfigError

if TYPE_CHECKING:
    from esper.lockstep.watchdog.watchdog import Watchdog


_LEAST = 1.0  # seconds: two heartbeats


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogConfig:
    """Whether a trainer on several ranks has `lockstep.start` watch them, and with what patience, in seconds:
    how long a rank may be late before it is judged.
    """

    on: bool = True
    patience: float = 300.0

    def __post_init__(self) -> None:
        if check_number("watchdog.patience", self.patience, 0.0) < _LEAST:
            raise ConfigError("watchdog.patience", self.patience, f"at least {_LEAST:g} s")


def watch(group: dist.ProcessGroup | None, config: WatchdogConfig) -> Watchdog | None:
    """Collective: every rank, same order. The watchdog that this started; None where none is wanted, where
    somebody watches already, and in a group that is not the whole job: the others would not come.
    """
    if not config.on or group is None or group is not dist.group.WORLD or lockstep.watched():
        return None
    return lockstep.start(patience=config.patience)
