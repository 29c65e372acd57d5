"""In a rank of `run`: records, then runs an unmodified script as `__main__`.

Started as `python -m esper.lockstep.rank RUN_DIR SCRIPT ARGS...` with the variables of `env://` set.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from esper.lockstep.errors import InterceptionUnavailable, LedgerError, StartError
from esper.lockstep.rank.lineage import die_with_parent
from esper.lockstep.rank.stacks import answer_stack_requests

if TYPE_CHECKING:
    from esper.lockstep.rank.intercept import Interception


def main() -> None:
    """Record this process, run the script, and leave with the status that it would have had."""
    run_dir, script = Path(sys.argv[1]), sys.argv[2]
    die_with_parent(int(os.environ.pop("ESPER_LOCKSTEP_PARENT")))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Registered before anybody else's, so run after them all, and after the threads that keep the process
    # alive: they may still issue collectives when the script has ended.
    program_over: list[Callable[[], None]] = []
    atexit.register(lambda: [over() for over in program_over])
    try:
        answer_stack_requests(run_dir, rank)
        interception = _interception(run_dir, rank, world_size)
    except (ImportError, OSError, LedgerError, InterceptionUnavailable, StartError) as error:
        _refuse(run_dir, error)
    recorder = interception.recorder
    program_over.append(recorder.over)
    # A forked child (a loader's worker) shares the mapping: what it does must not be taken for its parent's.
    os.register_at_fork(after_in_child=interception.detach)
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).resolve().parent)
    interception.begin(script)
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
        interception.replicas.audit("end", interception.groups.default(), None)
    except SystemExit as end:
        recorder.leaving_by(end)
        raise
    except BaseException as error:  # noqa: BLE001  recorded and printed, as the interpreter would
        recorder.raised(error)
        _print_without_our_frames(error)
        status = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(status)


def _interception(run_dir: Path, rank: int, world_size: int) -> Interception:
    from esper.lockstep.rank.hooks import check_hooks

    check_hooks()  # the imports below would fail with less than a name
    from esper.lockstep.rank.intercept import Interception
    from esper.lockstep.rank.joining import see_who_joins
    from esper.lockstep.rank.recorder import Recorder
    from esper.lockstep.record.ledger import Ledger

    interception = Interception(Recorder(Ledger(run_dir, rank, world_size)))
    interception.judged = True
    interception.install()
    see_who_joins(interception.recorder, interception.groups)
    return interception


def _refuse(run_dir: Path, error: Exception) -> NoReturn:
    """End before the script begins, with one sentence for the run: what one rank lacks, most lack."""
    with contextlib.suppress(FileExistsError):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.close(os.open(run_dir / "refused", os.O_CREAT | os.O_EXCL))
        text = (
            str(error)
            if isinstance(error, LedgerError | InterceptionUnavailable)
            else f"no recording: {error}"
        )
        sys.stderr.write(f"rank {os.environ['RANK']}: {text}\n")
    sys.exit(1)


def _print_without_our_frames(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and (
        "runpy" in trace.tb_frame.f_code.co_filename or trace.tb_frame.f_code.co_filename == __file__
    ):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


if __name__ == "__main__":
    main()
