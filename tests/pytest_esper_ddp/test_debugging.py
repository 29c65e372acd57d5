"""A debugger in a rank, at a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.pytest_esper_ddp.inner import LONG, Inner


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """A session with a terminal of its own: what it has shown, and a keyboard."""

    def __init__(self, inner: Inner, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:randomly",
                "--color=no",
                *arguments,
            ],
            cwd=inner.folder,
            env={**os.environ, "ESPER_TEST_TOKEN": inner.token, "PYTEST_DDP_SLOTS": "500", "COLUMNS": "200"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_own_terminal,  # noqa: PLW1509  this process has one thread
        )
        os.close(theirs)

    def until(self, pattern: str) -> str:
        """What is shown from here up to this."""
        end = time.monotonic() + LONG
        while (found := re.search(pattern, self.shown)) is None:
            assert select.select([self._ours], [], [], end - time.monotonic())[0], self.shown
            try:
                self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
            except OSError as error:  # nobody has the terminal open any more
                raise AssertionError(f"{pattern!r} never came:\n{self.shown}") from error
        part, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return part

    def type(self, keys: str) -> None:
        """As if by hand."""
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        """Switch it off."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def screen(inner: Inner, *arguments: str) -> Iterator[Screen]:
    """One, switched off in the end."""
    one = Screen(inner, *arguments)
    try:
        yield one
    finally:
        one.close()


PROMPT = r"\(Pdb\) "
FAILS = """
@ddp2
def test_fails(ddp):
    secret = 40 + ddp.rank
    dist.barrier()
    print("printed before")
    assert secret < 0

@ddp2
def test_next(ddp):
    dist.barrier()

@ddp2
def test_again(ddp):
    assert ddp.rank < 0

@ddp2
def test_never(ddp): ...
"""


def test_pdb_prompts_where_the_first_rank_failed(inner: Inner) -> None:
    inner.file(FAILS)
    with screen(inner, "--pdb") as terminal:
        head = terminal.until(PROMPT)
        assert "printed before" in head
        assert "assert 4" in head
        assert "entering PDB" in head
        terminal.type("p secret, ddp.rank, 'told'\n")
        rank = int(re.search(r"\((4[01]), ([01]), 'told'\)", terminal.until(PROMPT))[2])  # type: ignore[index]
        # Not one long sleep: Python loses a signal that comes when it is about to begin one.
        naps = "import time; print('go' + 'ing', flush=True)\\nwhile True: time.sleep(0.05)"
        terminal.type(f'exec("{naps}")\n')
        terminal.until("going")
        terminal.type("\x03")
        assert "KeyboardInterrupt" in terminal.until(PROMPT)
        terminal.type("c\n")
        terminal.until(PROMPT)  # of test_again; the other rank of test_fails had none
        terminal.type("q\n")
        end = terminal.until(r"=+ .* in [\d.]+s.*=+")
        assert f"test_fails - rank {rank}: AssertionError" in end or "test_fails - rank 0" in end
        assert "Exit: Quitting debugger" in end
        assert "2 failed, 1 passed" in end
        assert terminal.process.wait(LONG) == 2


STOPS = """
@pytest.mark.ddp(patience=0.1, timeout=1)
def test_stops(ddp):
    value = 7
    breakpoint()
    dist.barrier()
    assert value == 8

@ddp2
def test_next(ddp):
    dist.barrier()
"""


def test_a_breakpoint_prompts_in_the_rank_asked_for_and_nobody_is_late(inner: Inner) -> None:
    inner.file(STOPS)
    with screen(inner, "--ddp-debug-rank=1") as terminal:
        terminal.until(PROMPT)
        terminal.type("p ddp.rank, 'told'\n")
        terminal.until(r"\(1, 'told'\)[^(]*\(Pdb\) ")
        time.sleep(1.5)  # longer than the patience of lockstep and the test's time-out
        terminal.type("value = 8\n")
        terminal.until(PROMPT)
        terminal.type("c\n")
        end = terminal.until(r"=+ .* in [\d.]+s.*=+")
        assert "test_stops - rank 0: assert 7 == 8" in end
        assert "1 failed, 1 passed" in end
