"""In the rank: its stacks on request, whatever it is doing."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

# Its default action is to be ignored: a program that took our handler away is not killed by our asking.
STACK_SIGNAL = signal.SIGURG
_HIGH = 512  # a file's number


def stack_path(run_dir: Path, rank: int) -> Path:
    """Where rank `rank` writes its stacks on request."""
    return run_dir / f"rank{rank}.stacks"


def answer_stack_requests(run_dir: Path, rank: int) -> Callable[[], None]:
    """In the rank: on `STACK_SIGNAL` write all threads' stacks, from C, so also while the GIL is held; until
    what this returns is called.
    """
    first = os.open(stack_path(run_dir, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    # A number that no other file is given, where a program has closed all of them.
    # A bare one: a file object would complain of being left open where warnings are errors.
    file = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(first)
    faulthandler.register(STACK_SIGNAL, file, all_threads=True, chain=False)
    enables = not faulthandler.is_enabled()  # the user may want those stacks on the terminal
    if enables:
        faulthandler.enable(file, all_threads=True)

    def stop() -> None:
        faulthandler.unregister(STACK_SIGNAL)
        # Who enables it anew can't be told from us, so it stays as it is, with its file.
        if not enables:
            os.close(file)

    return stop
