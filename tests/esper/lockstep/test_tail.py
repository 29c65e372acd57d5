"""The end of a ledger, as a smaller one: what a reader sees of it is what it sees of the whole."""

from pathlib import Path

import pytest

from esper.lockstep.postmortem.copied import CopiedLedger
from esper.lockstep.record.entry import Entry, Kind
from esper.lockstep.record.ledger import Ledger, ledger_path
from esper.lockstep.record.tail import tail

RUN = bytes(16)


def written(folder: Path, count: int, capacity: int) -> tuple[bytes, bytes]:
    ledger = Ledger(folder, 1, 2, capacity, run=RUN)
    for number in range(count):
        ledger.append(
            Kind.COLLECTIVE,
            ledger.string("default"),
            number,
            ledger.string("all_reduce"),
            ledger.string(f"{number}"),
        )
    return ledger.path.read_bytes(), ledger.path.with_suffix(".strings").read_bytes()


def entries(folder: Path) -> tuple[list[Entry], bool]:
    copy = CopiedLedger(folder, 1)
    try:
        return list(copy.records()), copy.wrapped
    finally:
        copy.close()


@pytest.mark.parametrize(("count", "records"), [(0, 4), (3, 4), (4, 4), (5, 4), (20, 4), (20, 100), (40, 7)])
def test_a_tail_reads_as_the_end_of_the_whole(tmp_path: Path, count: int, records: int) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    ledger, table = tail(*written(whole, count, 16), records)
    ledger_path(part, 1).write_bytes(ledger)
    ledger_path(part, 1).with_suffix(".strings").write_bytes(table)
    found, wrapped = entries(part)
    before, was_wrapped = entries(whole)
    kept = min(records, 15, count)
    assert found == before[len(before) - kept :]
    assert [entry.number for entry in found] == list(range(count - kept, count))
    assert all(entry.legible for entry in found)
    assert wrapped == (was_wrapped or kept < count)


def test_a_tail_has_the_strings_that_it_needs_and_no_others(tmp_path: Path) -> None:
    _, table = tail(*written(tmp_path, 15, 16), 2)
    assert [line.partition(b" ")[2] for line in table.splitlines()] == [
        b'["run", "' + RUN.hex().encode() + b'"]',
        b'"default"',
        b'"all_reduce"',
        b'"13"',
        b'"14"',
    ]
