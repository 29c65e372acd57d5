"""`python -m pytest_esper_ddp build`."""

from __future__ import annotations

import argparse
import sys

from esper.lockstep.errors import KernelNotBuilt


def main() -> int:
    """Compile all that makes tests on ranks cheaper; 1, and a sentence, where that can't be done."""
    parser = argparse.ArgumentParser(prog="python -m pytest_esper_ddp")
    commands = parser.add_subparsers(dest="do", required=True)
    commands.add_parser("build", help="compile what makes tests on ranks cheaper, for this torch, once")
    parser.parse_args()

    from esper.lockstep.rank import compiled
    from esper.lockstep.run import quiet
    from pytest_esper_ddp.rank import backing

    try:
        for build in (compiled.build, quiet.build, backing.build):
            print(build())
    except KernelNotBuilt as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
