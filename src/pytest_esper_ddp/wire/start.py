"""What pytest's own process has in the environment of one that ranks are forked from, and only there."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Each fork copies the table of the pages that torch has filled. With large ones for what malloc has, that
# took 2.3 ms instead of 4; it is for the C library to read as the process starts.
_LARGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


def large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """What asks for them; nothing where the user has tuned the C library."""
    name, value = _LARGE_PAGES
    return {} if name in environment else {name: value}


def forget_large_pages() -> None:
    """In that process: they are not for the programs that tests start."""
    name, value = _LARGE_PAGES
    if os.environ.get(name) == value:
        del os.environ[name]
