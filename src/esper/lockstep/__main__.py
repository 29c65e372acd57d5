"""`python -m esper.lockstep`."""

import contextlib
import os
import sys

from esper.lockstep.cli import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
                stream.flush()
        # All is written, and an interpreter with torch in it takes a while to fall apart.
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
