"""The C library of this process."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """It, loaded once: each `CDLL` makes classes of its own, and each name is looked up anew in it."""
    return ctypes.CDLL(None, use_errno=True)
