"""Memory that is moved into files is what it was, and ranks that are forked with it are as any others."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_esper_ddp.rank import backing
from tests.pytest_esper_ddp.inner import Inner

built = pytest.mark.skipif(
    not backing.library_path().is_file(), reason="not built: python -m pytest_esper_ddp build"
)
HEAD = """
import hashlib, mmap, os, resource, threading
from pytest_esper_ddp.rank.backing import move_into_files

MIB = 1 << 20

def filled(size, used=1.0):
    # Memory of its own, written to from its begin on.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for first in range(0, int(size * used), mmap.PAGESIZE):
        memory[first] = 1 + first // mmap.PAGESIZE % 251
    memory.madvise(mmap.MADV_HUGEPAGE)  # so that the kernel does not make it a part of what is beside it
    return memory

def of_file(memory):
    # Whether the part that it is has moved.
    import ctypes
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for line in open("/proc/self/maps"):
        first, end = (int(one, 16) for one in line.split()[0].split("-"))
        if first <= address < end:
            return "memfd:pytest-ddp" in line

def digest(memory):
    return hashlib.sha256(memory[:]).hexdigest()
"""


def script(text: str, environment: Mapping[str, str] = {}) -> object:
    """What a process of its own prints last."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


@built
def test_memory_that_has_moved_is_what_it_was() -> None:
    found = script(
        """
        memory, kept = filled(9 * MIB + 5 * mmap.PAGESIZE), {number: str(number) for number in range(200_000)}
        before = digest(memory)
        moved = move_into_files()
        same = digest(memory) == before and all(text == str(number) for number, text in kept.items())
        print((moved >= 9 * MIB, of_file(memory), same, len(os.listdir("/proc/self/fd")) < 6))
        """
    )
    assert found == (True, True, True, True)


@built
def test_who_writes_to_it_writes_to_memory_of_its_own() -> None:
    """Parent and child, before and after the fork."""
    found = script(
        """
        memory = filled(4 * MIB)
        move_into_files()
        memory[0] = 70
        asked, answered = os.pipe(), os.pipe()
        if os.fork() == 0:
            memory[mmap.PAGESIZE] = 80
            os.write(answered[1], b"w")
            os.read(asked[0], 1)
            os.write(answered[1], bytes((memory[0], memory[mmap.PAGESIZE], memory[2 * mmap.PAGESIZE])))
            os._exit(0)
        os.read(answered[0], 1)
        memory[2 * mmap.PAGESIZE] = 90
        os.write(asked[1], b"r")
        theirs = tuple(os.read(answered[0], 3))
        print((theirs, (memory[0], memory[mmap.PAGESIZE], memory[2 * mmap.PAGESIZE])))
        """
    )
    assert found == ((70, 80, 3), (70, 2, 90))


@built
def test_what_would_be_lost_or_costs_more_than_it_spares_stays() -> None:
    found = script(
        """
        kept = {"plain": filled(4 * MIB), "not forked": filled(4 * MIB), "wiped": filled(4 * MIB),
                "empty": filled(4 * MIB, 0.5), "small": filled(MIB // 2), "locked": filled(4 * MIB)}
        kept["not forked"].madvise(mmap.MADV_DONTFORK)
        kept["wiped"].madvise(18)  # MADV_WIPEONFORK
        import ctypes
        ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(kept["locked"]))),
                                ctypes.c_size_t(4096))
        move_into_files()
        print([name for name, memory in kept.items() if of_file(memory)])
        """
    )
    assert found == ["plain"]


@built
def test_where_it_can_not_be_done_nothing_has_changed() -> None:
    found = script(
        """
        memory, done = filled(4 * MIB), threading.Event()
        other = threading.Thread(target=done.wait)
        other.start()
        with_another_thread = move_into_files()
        done.set()
        other.join()
        before = digest(memory)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
        with_too_small_files = move_into_files()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.environ["ESPER_LOCKSTEP_KERNEL"] = "python"
        not_wanted = move_into_files()
        del os.environ["ESPER_LOCKSTEP_KERNEL"]
        os.environ["XDG_CACHE_HOME"] = "/nowhere"
        not_built = move_into_files()
        del os.environ["XDG_CACHE_HOME"]
        same = digest(memory) == before and not of_file(memory)
        print((with_another_thread, with_too_small_files, not_wanted, not_built, same, move_into_files() > 0))
        """
    )
    assert found == (0, 0, 0, 0, True, True)


MANY = """
def moved():
    return "memfd:pytest-ddp" in Path("/proc/self/maps").read_text()

@pytest.mark.ddp(isolation="fresh")
@pytest.mark.parametrize("number", range(20))
def test_new(ddp, number):
    x = torch.ones(2)
    dist.all_reduce(x)
    assert x[0] == 2
    if ddp.rank == 0 and moved():
        print(number, file=open("moved", "a"))

@ddp2
def test_later_in_a_pool(ddp):
    dist.barrier()
    assert moved()
"""


@built
def test_a_session_of_many_tests_on_new_ranks_does_it_once_it_is_known_to_be_one(inner: Inner) -> None:
    inner.file(MANY)
    result = inner.run("-p", "no:randomly")
    assert len(result.passed) == 21, result.text[-2000:]
    assert (inner.folder / "moved").read_text().split() == ["16", "17", "18", "19"]


def build(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest_esper_ddp", "build"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@built
def test_one_command_builds_all_that_makes_tests_on_ranks_cheaper() -> None:
    done = build()
    assert (done.returncode, done.stderr) == (0, "")
    assert [Path(line).name.partition("-")[0] for line in done.stdout.split()] == [
        "kernel",
        "quiet",
        "backing",
    ]


def test_without_a_compiler_it_says_so_in_a_sentence(tmp_path: Path) -> None:
    done = build(XDG_CACHE_HOME=str(tmp_path), CXX="/nowhere/c++")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the compiled kernel is not built: no C++ compiler '/nowhere/c++'")
    assert done.stderr.count("\n") == 1
