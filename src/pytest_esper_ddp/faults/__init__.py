"""The catalogue of faults: frozen data with coordinates, and how each is applied from outside."""

import os
from pathlib import Path

# Where a rank is while a fault is applied: what it was about to do is its caller's line.
FILES = (
    str(Path(__file__).parent) + os.sep,
    str(Path(__file__).parent.parent / "rank" / "inject.py"),
)
