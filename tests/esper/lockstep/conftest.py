"""A ledger small enough to wrap, and its reader: the process's own, without ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader

CAPACITY = 8


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Rank 0's of two, of `CAPACITY` records."""
    ledger = Ledger(tmp_path, 0, 2, CAPACITY)
    yield ledger
    ledger.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[LedgerReader]:
    """What reads it, from its first record on."""
    reader = LedgerReader(tmp_path, 0)
    yield reader
    reader.close()
