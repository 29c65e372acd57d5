"""Command line of lockstep."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from esper.lockstep.proof.finding import Patience

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run or explain, print the sentence, exit: 0 clean, 3 diverged, 4 inconclusive, 2 wrong usage;
    otherwise the script's own status, or 1 for a run that failed and is explained.
    """
    options = _options(arguments)
    if options.do == "build":
        _build()
    _hold_standard_streams()
    if options.do == "explain":
        _explain(options.run_dir, as_json=options.json)

    from esper.lockstep.run.launch import run

    # A signal that ends this process ends the ranks and removes the ledgers first.
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    patience = Patience(options.patience, options.patience, options.compile_patience)
    report, status = run(options.command, options.nproc, patience, _tell)
    for diagnosis in report.diagnoses:
        _tell(diagnosis.message)
    if options.report is not None:
        try:
            options.report.write_text(json.dumps(report.to_json(), indent=1) + "\n")
        except OSError as error:
            _tell(f"--report {str(options.report)!r} is not written: {error.strerror}")
    sys.exit(status)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; ends the process with a sentence where it can't be."""
    parser = argparse.ArgumentParser(prog="python -m esper.lockstep")
    commands = parser.add_subparsers(dest="do", required=True)
    commands.add_parser(
        "build", help="compile what records most collectives and what follows them, for this torch, once"
    )
    run_parser = commands.add_parser("run", help="run an env:// script on N ranks and name what would hang")
    run_parser.add_argument(
        "--nproc", type=int, required=True, metavar="N", help="how many ranks, at least 1"
    )
    run_parser.add_argument(
        "--report", type=Path, metavar="FILE.json", help="write esper.lockstep.report/1 here"
    )
    run_parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long a late rank is only suspected (60)",
    )
    run_parser.add_argument(
        "--compile-patience",
        type=float,
        default=Patience.compiling,
        metavar="SECONDS",
        help=f"how much longer it is if the rank compiles meanwhile, at most ({Patience.compiling:g})",
    )
    run_parser.add_argument("script", metavar="-- SCRIPT [ARGS]", nargs=argparse.REMAINDER)
    explain_parser = commands.add_parser("explain", help="say from a run's files what happened in it")
    explain_parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="a run's folder, or one with several attempts"
    )
    explain_parser.add_argument("--json", action="store_true", help="print esper.lockstep.report/1")
    options = parser.parse_args(arguments)
    if options.do != "run":
        return options
    command = [word for index, word in enumerate(options.script) if index or word != "--"]
    if not command:
        run_parser.error("no script: python -m esper.lockstep run --nproc 4 -- train.py")
    if (reason := _unreadable(command[0])) is not None:
        run_parser.error(f"script {command[0]!r} {reason}; give the path of a Python script")
    if options.nproc < 1:
        run_parser.error(f"--nproc={options.nproc} must be an integer >= 1")
    if not options.patience > 0:
        run_parser.error(f"--patience={options.patience} must be a number of seconds > 0")
    if not options.compile_patience >= 0:
        run_parser.error(f"--compile-patience={options.compile_patience} must be a number of seconds >= 0")
    if options.report is not None:
        try:
            # Before an hour of training, not after it; and no earlier run's report is taken for this one's.
            options.report.open("w").close()
        except OSError as error:
            run_parser.error(f"--report {str(options.report)!r}: {error.strerror}")
    options.command = command
    return options


def _build() -> NoReturn:
    from esper.lockstep.errors import KernelNotBuilt
    from esper.lockstep.rank import compiled
    from esper.lockstep.run import quiet

    try:
        for build in (compiled.build, quiet.build):
            sys.stdout.write(f"{build()}\n")
    except KernelNotBuilt as error:
        _tell(str(error))
        sys.exit(1)
    sys.exit(0)


def _explain(run_dir: Path, *, as_json: bool) -> NoReturn:
    from esper.lockstep.errors import LedgerError
    from esper.lockstep.postmortem.explain import explain

    try:
        found = explain(run_dir)
    except LedgerError as error:
        _tell(f"explain: RUN_DIR {str(run_dir)!r} {error.reason}")
        sys.exit(2)
    if as_json:
        _tell(json.dumps(found.report.to_json(), indent=1), to=1)
    _tell(found.text, to=2 if as_json else 1)
    sys.exit(found.status)


def _unreadable(script: str) -> str | None:
    """Why this can't be run; None where it can."""
    try:
        if not Path(script).is_file():
            return "is no file"
        with open(script, "rb"):
            return None
    except OSError as error:
        return f"can't be read ({error.strerror})"


def _hold_standard_streams() -> None:
    """Open those that are closed, on nothing. A rank's string table once took their number, and what the
    program wrote went there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _leave(number: int, frame: FrameType | None) -> None:
    for other in _ENDING:  # an impatient second one must not break off what the first began
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def _tell(text: str, to: int = 2) -> None:
    # Past Python's stream: a reader that has gone (`2>&1 | head`) must change neither verdict nor status.
    left = (text + "\n").encode(errors="backslashreplace")
    with suppress(OSError):
        while left:
            left = left[os.write(to, left) :]
