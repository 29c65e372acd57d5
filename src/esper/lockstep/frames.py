"""Which source files are plumbing: a call site is the first frame outside them."""

from __future__ import annotations

import contextlib
import os
import sysconfig

_STDLIB = sysconfig.get_path("stdlib")
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

INTERNAL: tuple[str, ...] = (
    _HERE,
    os.path.join(sysconfig.get_path("purelib"), "torch") + os.sep,
    os.path.join(sysconfig.get_path("platlib"), "torch") + os.sep,
    contextlib.__file__,
    os.path.join(_STDLIB, "typing.py"),
    os.path.join(_STDLIB, "threading.py"),
    os.path.join(_STDLIB, "subprocess.py"),
    os.path.join(_STDLIB, "runpy.py"),
    "<frozen ",
    "<string>",
)
