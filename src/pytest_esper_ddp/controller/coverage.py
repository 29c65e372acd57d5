"""What ranks execute counts for whoever measures pytest's own process: `coverage run`, or pytest-cov."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_esper_ddp.wire.messages import Measured

_DATA = "coverage"
# Through these coverage measures every Python process: in the zygote it would only cost time, since
# pytest collects the same files itself.
OF_SUBPROCESSES = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


def measured(base: Path) -> Measured | None:
    """How ranks are to measure, into files below `base`; None where nobody measures this process."""
    current = _current()
    if current is None:
        return None
    environment = {name: os.environ[name] for name in OF_SUBPROCESSES if name in os.environ}
    return Measured(current.config, base / _DATA, environment)


def take_in(base: Path) -> None:
    """Add what ranks have left below `base` to this process's own data, and remove it there.

    Not left to `coverage combine`, which pytest-cov runs and `coverage run` does not.
    """
    files = sorted(base.glob(f"{_DATA}.*"))
    current = _current()
    if not files or current is None:
        return
    from coverage import CoverageData
    from coverage.exceptions import CoverageException, CoverageWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)  # that this process alone has no data
        mine = current.get_data()
    for file in files:
        theirs = CoverageData(str(file))
        try:
            theirs.read()
            mine.update(theirs)
        except CoverageException as error:
            warnings.warn(f"coverage of one rank is lost: {error}", stacklevel=1)
        theirs.close()
        with suppress(OSError):
            file.unlink()


def _current() -> Any:
    """The measurement that runs in this process; looking for it does not import coverage."""
    coverage = sys.modules.get("coverage")
    return None if coverage is None else coverage.Coverage.current()
