"""Command line of lockstep."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print the sentence, exit: 0 clean, 3 diverged, 2 wrong usage, otherwise the script's own
    status.
    """
    parser = argparse.ArgumentParser(prog="python -m esper.lockstep")
    commands = parser.add_subparsers(dest="command", required=True)
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
    run_parser.add_argument("script", metavar="-- SCRIPT [ARGS]", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    command = [word for index, word in enumerate(options.script) if index or word != "--"]
    if not command:
        run_parser.error("no script: python -m esper.lockstep run --nproc 4 -- train.py")
    if not Path(command[0]).is_file():
        run_parser.error(f"script {command[0]!r} is no file; give the path of a Python script")
    if options.nproc < 1:
        run_parser.error(f"--nproc={options.nproc} must be an integer >= 1")
    if not options.patience > 0:
        run_parser.error(f"--patience={options.patience} must be a number of seconds > 0")
    if options.report is not None:
        try:
            options.report.touch()  # before an hour of training, not after it
        except OSError as error:
            run_parser.error(f"--report {str(options.report)!r}: {error.strerror}")

    from esper.lockstep.launch import run

    # A signal that ends this process ends the ranks and removes the ledgers first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    report, status = run(command, options.nproc, options.patience, _tell)
    for diagnosis in report.diagnoses:
        _tell(diagnosis.message)
    if options.report is not None:
        options.report.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    sys.exit(status)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
