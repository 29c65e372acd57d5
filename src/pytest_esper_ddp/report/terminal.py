"""The table at the end of the session."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_esper_ddp.report.account import Row

_HEADS = ("scenario", "fault", "outcome", "guilty", "seconds")


def write_table(reporter: pytest.TerminalReporter, rows: Sequence[Row]) -> None:
    """Scenario, fault, outcome, guilty rank, seconds from the fault to the diagnosis; a test's notes below
    its row.
    """
    reporter.section("tests on ranks", sep="-", bold=True)
    cells = [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in (_HEADS, *cells)) for column in range(len(_HEADS))]
    reporter.write_line(_line(_HEADS, widths), bold=True)
    for row, line in zip(rows, cells, strict=True):
        reporter.write_line(_line(line, widths), green=row.passed, red=not row.passed)
        for note in row.notes:
            for text in note.splitlines():
                reporter.write_line(f"  {text}")


def _cells(row: Row) -> tuple[str, ...]:
    return row.name, row.faults, row.outcome, row.guilty, row.seconds


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
