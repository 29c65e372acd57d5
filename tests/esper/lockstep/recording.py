"""In a forked rank: record what a body of code does, and read it back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Entry, Kind, Times
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader
from tests.esper.ranks import run_ranks


@dataclass
class Recording:
    """An installed interception and its ledger."""

    interception: Interception
    reader: LedgerReader

    def entries(self) -> list[Entry]:
        """What was written since the last look, with its times as they are now."""
        return [entry._replace(times=self.wait_of(entry.number)) for entry in self.reader.new()]

    def calls(self) -> list[Entry]:
        """Collectives only, in this rank's order."""
        return [entry for entry in self.entries() if entry.kind is Kind.COLLECTIVE]

    def wait_of(self, number: int) -> Times:
        times = self.reader.times(number)
        assert times is not None
        return times


@contextmanager
def recorded() -> Iterator[Recording]:
    rank = dist.get_rank()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder), rank, dist.get_world_size())
        interception = Interception(Recorder(ledger))
        interception.install()
        try:
            yield Recording(interception, LedgerReader(Path(folder), rank))
        finally:
            interception.uninstall()


def on_ranks(body: Callable[[int], Any], world_size: int = 2) -> list[Any]:
    """What `body` returned on each rank; its first error is raised here."""
    outcomes = run_ranks(body, world_size)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes]
