"""What is to be said of a test that fails nothing: warnings of its ranks, and what it has left behind."""

from __future__ import annotations

import sys
import warnings

import pytest

from esper.lockstep.proof.finding import ranks_text
from pytest_esper_ddp.controller.run import Run
from pytest_esper_ddp.errors import RanksWarning


def forward_warnings(item: pytest.Item, run: Run) -> None:
    """Ranks' warnings for the summary; what several ranks say alike once."""
    every = dict.fromkeys(one for _, outcome in sorted(run.outcomes.items()) for one in outcome.warnings)
    for warned in every:
        category = getattr(sys.modules.get(warned.module), warned.category, UserWarning)
        message = warnings.WarningMessage(warned.text, category, warned.file, warned.line)
        item.ihook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "when": "runtest", "nodeid": item.nodeid, "location": None}
        )


def tell_leaks(item: pytest.Item, run: Run) -> None:
    """Warn of what the item has left behind, where nothing else is to be said of it."""
    if run.exits or run.unfinished or run.diagnosis is not None:
        return
    leaking: dict[str, list[int]] = {}
    for rank, outcome in sorted(run.outcomes.items()):
        for leak in outcome.leaks:
            leaking.setdefault(leak, []).append(rank)
    if leaking:
        told = "; ".join(f"{leak} on {ranks_text(ranks)}" for leak, ranks in leaking.items())
        warn(item, f"left behind: {told}; the next test gets new ranks")


def warn(item: pytest.Item, text: str) -> None:
    """A warning with the item's name in pytest's summary."""
    file, line, _ = item.location
    message = warnings.WarningMessage(RanksWarning(text), RanksWarning, file, (line or 0) + 1)
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": "runtest", "nodeid": item.nodeid, "location": None}
    )
