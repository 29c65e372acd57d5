"""The other hosts' ends of connections, for all ranks of this one: `ends.json`, beside the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from esper.lockstep.errors import LedgerError
from esper.lockstep.record.once import read_once, write_once
from esper.lockstep.watchdog.sockets import Endpoint

NAME = "ends.json"


def write_ends(folder: Path, ends: Sequence[tuple[str, int]]) -> None:
    """Leave them; without room each rank ends in time, if it can't be made to raise."""
    with suppress(LedgerError):
        write_once(folder / NAME, {"ends": list(ends)})


def read_ends(folder: Path) -> list[Endpoint]:
    """None before there is a verdict."""
    with suppress(LedgerError, KeyError, TypeError, ValueError):
        document = read_once(folder / NAME) or {"ends": []}
        return [(bytes.fromhex(address), int(port)) for address, port in document["ends"]]
    return []
