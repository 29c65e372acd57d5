"""In the rank: who waits for a backward of which autograd's own threads issue the collectives."""

from __future__ import annotations

import sys
import threading
from types import FrameType

import torch

from esper.lockstep.rank.threads import kernel_id

# What autograd leaves Python from.
ENGINE = getattr(getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None)


def waiting_thread() -> tuple[FrameType | None, int]:
    """The frame that called autograd and its thread's kernel id: for a collective from a thread that has no
    Python frame, as autograd's for each GPU have none.

    No frame and id 0 where nobody, or more than one thread, waits for a backward: which of them it is for
    can't be told.
    """
    waiting = [(frame, ident) for ident, frame in sys._current_frames().items() if frame.f_code is ENGINE]
    if len(waiting) != 1:
        return None, 0
    frame, ident = waiting[0]
    thread = next((one for one in threading.enumerate() if one.ident == ident), None)
    return frame, kernel_id(thread) if thread is not None else 0
