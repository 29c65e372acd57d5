"""The watchdog of a training program: one line, and a stuck job says why and ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.lockstep.watchdog.watchdog import Watchdog

PATIENCE = 300.0


def start(patience: float = PATIENCE, action: str = "raise", run_dir: str | Path | None = None) -> Watchdog:
    """Watch this job from now on. Call it on every rank at the same place, right after
    `init_process_group`.

    Where a collective can never complete, all ranks learn of it within seconds: one of them prints the
    sentence that names the guilty rank and the lines on both sides, and each raises `LockstepError` where it
    is stuck (`action="raise"`) or ends with status 3 (`action="exit"`). What can't be proved, a rank that is
    only late, is judged after `patience` seconds. Ledgers and stacks go to a folder of their own in
    `run_dir`, where they stay for `python -m esper.lockstep explain`; without it into memory, where they
    stay only after a verdict.

    What keeps it from watching (no group, no store that answers, no room in `run_dir`, it watches already,
    ...) is said in one sentence on stderr, and the program runs on. Under `python -m esper.lockstep run`, and
    in a test that lockstep ends at a verdict, it does nothing: those watch already. Raises ValueError for
    another action, and TypeError for a patience that is no number.
    """
    from esper.lockstep.watchdog.watchdog import start as begin

    return begin(patience, action, None if run_dir is None else Path(run_dir))


def watched() -> bool:
    """Whether this process is recorded: by the watchdog, under `python -m esper.lockstep run`, in a test."""
    import sys

    module = sys.modules.get("esper.lockstep.rank.intercept")
    return module is not None and module.installed() is not None


def stop() -> None:
    """Stop watching; nothing where nobody watches. Call it on every rank: once one has stopped, none of the
    others is told of a verdict any more, since nobody sees what that one does.
    """
    import sys

    module = sys.modules.get("esper.lockstep.watchdog.watchdog")
    if module is not None:
        module.stop()


def leave() -> None:
    """The program that called `start` is over on this rank, though its process lives on: as at an exit, the
    others are watched on.
    """
    import sys

    module = sys.modules.get("esper.lockstep.watchdog.watchdog")
    if module is not None:
        module.leave()
