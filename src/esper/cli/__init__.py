"""`esper`, or `python -m esper`: train, and look at what was trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from esper.cli import doctor, look, train


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what was asked for and exit: 0, 1 when it failed, 2 for wrong usage, 130 after a second Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="esper", description="Networks that grow while they train, the same on every rank."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for room in (train, look, doctor):
        room.add_commands(commands)
    options = parser.parse_args(arguments)
    sys.exit(options.do(options))
