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
import os, socket, sys
from pathlib import Path
from pytest_esper_ddp.rank import joining

def found():
    try:
        return socket.gethostbyname("localhost")
    except OSError as error:
        return "nothing"

def tell(sources):
    joining._SOURCES = sources
    print(found())
    with joining._names_from_files():
        print(found())
    print(found(), flush=True)

# Each in a process of its own: what a library was told once it keeps.
for name in sys.argv[1:]:
    if os.fork() == 0:
        tell(Path(name))
        os._exit(0)
    assert os.wait()[1] == 0
"""

SOURCES = {
    "ours": "# where names are\npasswd: files\nhosts:\t nosuchsource # ours\n",
    "usual": "hosts: files dns",
    "silent": "passwd: files",  # nothing to put back: nothing is changed
}


@pytest.mark.skipif(not Path("/etc/nsswitch.conf").is_file(), reason="names are not glibc's to find")
def test_names_come_from_files_while_a_rank_joins_and_from_where_they_did_afterwards(tmp_path: Path) -> None:
    for name, written in SOURCES.items():
        (tmp_path / name).write_text(written)
    paths = [str(tmp_path / name) for name in SOURCES]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], capture_output=True, text=True, check=True, timeout=60
    )
    local = "127.0.0.1"
    assert done.stdout.split() == [*(local, local, "nothing"), *(local, local, local), *(local, local, local)]


def test_a_user_who_has_tuned_the_c_library_keeps_that() -> None:
    assert large_pages({"GLIBC_TUNABLES": "glibc.malloc.check=3"}) == {}
    assert large_pages({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
