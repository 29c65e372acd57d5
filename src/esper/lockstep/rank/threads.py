"""In the rank: its threads, as the kernel numbers them."""

from __future__ import annotations

import os
import threading


def kernel_id(thread: threading.Thread) -> int:
    """The kernel's id of a thread of this process; 0 of one that has not begun.

    After a fork Python still has the parent's of the thread that has become the main one.
    """
    return os.getpid() if thread is threading.main_thread() else thread.native_id or 0
