"""Ranks that can't outlive who started them."""

from __future__ import annotations

import os
import signal

from esper.lockstep.rank.libc import libc

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """In a child: SIGKILL when the thread that started it ends, or at once when `parent` is already gone.

    Set by the child itself, since a fork clears it. Linux only; elsewhere a pipe's end of file has to do.
    """
    try:
        libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
