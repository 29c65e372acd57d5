"""What a forked process copies of the memory that it shares is copied at once, and less of it is."""

from __future__ import annotations

import ast
import mmap
import subprocess
import sys
import textwrap

import pytest


def script(text: str) -> object:
    """What a process of its own prints last."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


PROBE = """
    import ctypes, mmap, os
    page = ctypes.c_char.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
    try:
        one = (ctypes.c_size_t * 2)(ctypes.addressof(page), mmap.PAGESIZE)
        print(ctypes.CDLL(None).process_madvise(os.pidfd_open(os.getpid()), one, ctypes.c_size_t(1), 23, 0))
    except AttributeError:
        print(-1)
"""
FORKS = """
    import atexit, mmap, os, resource, sys

    from pytest_esper_ddp.rank.memory import settle
    from pytest_esper_ddp.rank.pages import CopiedAhead

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def forked(rank, written):
        # A rank that writes to these pages: how many page faults that took.
        reading, writing = os.pipe()
        if os.fork() == 0:
            ahead.in_rank(rank)
            before = faults()
            for page in written:
                memory[page * mmap.PAGESIZE] = 1
            os.write(writing, str(faults() - before).encode())
            atexit._run_exitfuncs()
            os._exit(0)
        os.close(writing)
        with open(reading) as told:
            took = int(told.read())
        os.wait()
        return took

    def world(*written):
        ahead.before_forks()
        return [forked(rank, pages) for rank, pages in enumerate(written)]

    PAGES = 400
    memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(PAGES):
        memory[page * mmap.PAGESIZE] = 2
    settle()
    ahead = CopiedAhead()
"""


@pytest.mark.skipif(
    script(PROBE) != mmap.PAGESIZE, reason="this system copies no pages ahead: Linux 6.13 does"
)
def test_pages_that_two_ranks_have_written_to_are_copied_ahead_for_the_next() -> None:
    took = script(
        FORKS
        + """
    first = world(range(100), range(50, 150))
    copied = bytes(memory[::mmap.PAGESIZE]) == b"\\2" * PAGES  # theirs, not ours
    second = world(range(50, 100), range(300, 350))
    print((first[0] >= 100, copied, second[0], second[1] >= 50, len(os.listdir("/proc/self/fd"))))
    """
    )
    assert isinstance(took, tuple)
    many, untouched, known, unknown, files = took
    assert (many, untouched, unknown) == (True, True, True)
    assert known < 10
    assert files < 8  # those that ranks have told it in are closed


def test_who_never_says_it_is_not_asked_for_ever() -> None:
    asked = script(
        FORKS
        + """
    asked = []
    for number in range(12):
        ahead.before_forks()
        asked.append(len(ahead._told))
    print((max(asked), asked[-1], len(os.listdir("/proc/self/fd")) < 8, world(range(100))[0] >= 100))
    """
    )
    assert asked in ((8, 0, True, True), (0, 0, True, True))


def test_what_a_rank_allocates_begins_pages_of_its_own() -> None:
    """After a tenth of what fills the interpreter's pools has gone, as after many imports."""
    pages = script(
        """
        import mmap
        from pytest_esper_ddp.rank.memory import settle

        SIZES = (64, 208, 512)
        kept = [bytes(size - 33) for size in SIZES for _ in range(3000)]
        del kept[::10]
        settle()
        new = {size: [bytes(size - 33) for _ in range(50)] for size in SIZES}
        print({size: len({id(one) // mmap.PAGESIZE for one in some}) for size, some in new.items()})
        """
    )
    assert isinstance(pages, dict)
    for size, count in pages.items():
        assert count <= 50 * size // mmap.PAGESIZE + 3, size
