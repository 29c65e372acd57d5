"""Which source files are plumbing: a call site is the first frame outside them."""

from __future__ import annotations

import contextlib
import os
import sysconfig
from importlib.util import find_spec


def _places(name: str) -> tuple[str, ...]:
    """Where a package or module lies, which need not be this environment's site-packages. Imports nothing."""
    try:
        found = find_spec(name)
    except ValueError:  # somebody put a module without a specification in its place
        found = None
    if found is None:
        return ()
    return tuple(place + os.sep for place in found.submodule_search_locations or ()) or (str(found.origin),)


_STDLIB = sysconfig.get_path("stdlib")
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

INTERNAL: tuple[str, ...] = (
    _HERE,
    *_places("torch"),
    *_places("esper.distributed"),  # its exchanges are the caller's
    contextlib.__file__,
    *_places("typing_extensions"),  # of functions that torch has deprecated
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
