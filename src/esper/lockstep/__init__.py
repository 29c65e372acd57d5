"""Sees every collective on every rank and turns one that can never complete into one sentence.

Importing this package is cheap and does not import torch: `tag` costs nanoseconds until a rank records.
"""

from esper.lockstep.asking import ask
from esper.lockstep.errors import DivergenceError, FieldDifference, LedgerError, LockstepError
from esper.lockstep.report.diagnosis import Diagnosis, Report
from esper.lockstep.starting import start, stop, watched
from esper.lockstep.tags import tag
from esper.lockstep.waiting import awaiting
from esper.lockstep.watching import watch

__all__ = [
    "Diagnosis",
    "DivergenceError",
    "FieldDifference",
    "LedgerError",
    "LockstepError",
    "Report",
    "ask",
    "awaiting",
    "start",
    "stop",
    "tag",
    "watch",
    "watched",
]
