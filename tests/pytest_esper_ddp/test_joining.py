"""A rank meets the others on this machine, and asks no name server who they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_esper_ddp.wire.start import large_pages

# What is configured while the store's client is made, and what after: a process in which the system's
# sources of names are such that nothing is found by them.
PROGRAM = """
import socket, sys, threading
from pathlib import Path
from pytest_esper_ddp.rank import joining

def found():
    try:
        return socket.gethostbyname("localhost")
    except OSError as error:
        return "nothing"

joining._SOURCES = Path(sys.argv[1])
print(found())
with joining._names_from_files():
    print(found())
print(found())
"""


@pytest.mark.skipif(not Path("/etc/nsswitch.conf").is_file(), reason="names are not glibc's to find")
@pytest.mark.parametrize(
    ("written", "after"),
    [
        ("# where names are\npasswd: files\nhosts:\t nosuchsource # ours\n", "nothing"),
        ("hosts: files dns", "127.0.0.1"),
        ("passwd: files", "127.0.0.1"),  # nothing to put back: nothing is changed
    ],
)
def test_names_come_from_files_while_a_rank_joins_and_from_where_they_did_afterwards(
    tmp_path: Path, written: str, after: str
) -> None:
    sources = tmp_path / "nsswitch.conf"
    sources.write_text(written)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(sources)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:3] == ["127.0.0.1", "127.0.0.1", after]


def test_a_user_who_has_tuned_the_c_library_keeps_that() -> None:
    assert large_pages({"GLIBC_TUNABLES": "glibc.malloc.check=3"}) == {}
    assert large_pages({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
