"""What is true of all ranks of a run: `run.json`, beside their ledgers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from esper.lockstep.errors import LedgerError
from esper.lockstep.record.once import read_once, write_once

SCHEMA = "esper.lockstep.run/1"
NAME = "run.json"
_RUN = re.compile(r"[0-9a-f]{0,32}\Z")


class Waits(NamedTuple):
    """How long who is late is only suspected, in seconds: as the proof's Patience has it."""

    running: float
    stopped: float
    compiling: float


@dataclass(frozen=True)
class Manifest:
    """One run: its id in hexadecimal digits, how many ranks, when it began (seconds of the Unix epoch), how
    patient its watchdog is, and the name of each rank's host.
    """

    run: str
    world_size: int
    started: float
    patience: Waits
    hosts: dict[int, str]

    def write(self, run_dir: Path) -> bool:
        """Write it, whole or not at all; False where another rank was first, whose stays.

        Raises LedgerError when it can't be written.
        """
        document = {
            "schema": SCHEMA,
            "run": self.run,
            "world_size": self.world_size,
            "started": self.started,
            "patience": self.patience._asdict(),
            "hosts": {str(rank): name for rank, name in self.hosts.items()},
        }
        return write_once(run_dir / NAME, document)

    @staticmethod
    def read(run_dir: Path) -> Manifest | None:
        """That of the run in this folder; None where there is none. Raises LedgerError for one that is not
        legible.
        """
        path = run_dir / NAME
        document = read_once(path)
        if document is None:
            return None
        try:
            return _parsed(document)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LedgerError(str(path), f"is no {SCHEMA}: {error!r}") from error


def _parsed(document: dict[str, Any]) -> Manifest:
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']!r}")
    run, world_size, hosts = document["run"], document["world_size"], document["hosts"]
    if not (isinstance(run, str) and _RUN.match(run)):
        raise ValueError(f"run {run!r}")
    if type(world_size) is not int or world_size < 1:
        raise ValueError(f"world_size {world_size!r}")
    if not (isinstance(hosts, dict) and all(isinstance(name, str) for name in hosts.values())):
        raise TypeError(f"hosts {hosts!r}")
    return Manifest(
        run,
        world_size,
        _seconds(document["started"]),
        Waits(*(_seconds(document["patience"][name]) for name in Waits._fields)),
        {int(rank): name for rank, name in hosts.items()},
    )


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"seconds {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"seconds {value!r}")
    return float(value)
