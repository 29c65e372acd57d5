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
    os.path.join(sysconfig.get_path("purelib"), "typing_extensions.py"),
    os.path.join(sysconfig.get_path("platlib"), "typing_extensions.py"),
    os.path.join(_STDLIB, "typing.py"),
    os.path.join(_STDLIB, "threading.py"),
    os.path.join(_STDLIB, "subprocess.py"),
    os.path.join(_STDLIB, "runpy.py"),
    "<frozen ",
    "<string>",
)


def in_stdlib(file: str) -> bool:
    """Whether a source file is the standard library's. Outside a venv its folder holds site-packages, too."""
    return file.startswith(_STDLIB + os.sep) and "-packages" + os.sep not in file
