"""Where a living rank is now: its Python stack, taken without its cooperation."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from pathlib import Path
from typing import Protocol

from esper.lockstep.frames import in_stdlib
from esper.lockstep.rank.stacks import STACK_SIGNAL
from esper.lockstep.record.entry import Site
from esper.lockstep.run.process import state

_THREAD = re.compile(r"^(Thread|Current thread) 0x", re.MULTILINE)
# Where DDP's constructor and reducer, and functional collectives, leave Python for good.
_WAITS_IN_CPP = (
    "torch/autograd/graph.py",
    "torch/_ops.py",
    "torch/nn/parallel/distributed.py",
    "torch/distributed/utils.py",
    "torch/distributed/_functional_collectives.py",
)
_FRAME = re.compile(r'File "(.*?)", line (\d+) in (.*)')


class StackRequests(Protocol):
    """How a rank is asked to append its threads' stacks to its file, that of the asked thread as the current
    one. Raises OSError where it can't be.
    """

    within: float  # seconds that an answer may take

    def ask(self, pid: int, thread: int | None) -> None:
        """Ask a process, on behalf of one of its threads or of whichever takes it."""


class BySignal:
    """By a signal that C code answers, whatever the rank is doing."""

    within = 0.2

    def ask(self, pid: int, thread: int | None) -> None:
        """Send it."""
        if thread is None:
            os.kill(pid, STACK_SIGNAL)
        else:
            _signal_thread(pid, thread)


def current_line(
    pid: int,
    path: Path,
    internal: tuple[str, ...],
    within: float,
    *,
    wake: bool = True,
    ask: bool = True,
    requests: StackRequests | None = None,
) -> tuple[str, Site | None]:
    """(state, innermost line that is the user's) of a living rank; waits `within` seconds at most.

    A stopped rank is continued to answer, with the signal already queued; without `wake` it stays stopped and
    has no line; without `ask` none has.
    """
    letter = state(pid)
    name = {"T": "stopped", "t": "stopped", "R": "running", "D": "running"}.get(letter, "sleeping")
    if not ask or (letter in "Tt" and not wake):
        return name, None
    try:
        before = path.stat().st_size
        if letter not in "Tt":
            (requests or BySignal()).ask(pid, None)
        else:
            # To its main thread, which then answers before it does anything else. Sent to the process, a
            # thread of gloo's took it now and then, and the main thread was a line further meanwhile.
            _signal_thread(pid, pid)
            os.kill(pid, signal.SIGCONT)
    except OSError:
        return name, None
    return name, _innermost(_answer(path, before, within), internal)


def last_words(path: Path, internal: tuple[str, ...]) -> Site | None:
    """The user's line in which a fatal signal came, as the dying rank wrote it."""
    try:
        text = _written_since(path, 0)
    except OSError:
        return None
    at = text.rfind("Fatal Python error: ")
    return None if at < 0 else _innermost(text[at:], internal)


def sleeps_in_torch(pid: int, thread: int, path: Path, requests: StackRequests) -> bool:
    """Whether the innermost Python frame of this thread is one of torch's from which it waits in C++.

    A thread that sleeps in the program's own code will go on.
    """
    try:
        before = path.stat().st_size
        requests.ask(pid, thread)
    except OSError:
        return False
    text = _answer(path, before, requests.within)
    current = text[text.find("Current thread") :] if "Current thread" in text else ""
    frame = _FRAME.search(current)
    return frame is not None and frame[1].endswith(_WAITS_IN_CPP)


def _signal_thread(pid: int, thread: int) -> None:
    """Ask one thread for the stacks. Raises OSError where it is gone, or the C library lacks tgkill."""
    try:
        failed = ctypes.CDLL(None).tgkill(pid, thread, int(STACK_SIGNAL))
    except AttributeError as error:
        raise OSError("no tgkill") from error
    if failed:
        raise OSError(f"no thread {thread} in process {pid}")


def _answer(path: Path, before: int, within: float) -> str:
    end = time.monotonic() + within
    text = ""
    while time.monotonic() < end:
        earlier, text = text, _written_since(path, before)
        # The interrupted thread's own stack comes last in the file, frame by frame: it is whole when it has
        # stopped growing. Read before, it ended at a frame of ours, and the user's line was missing.
        if "Current thread" in text and text == earlier:
            break
        time.sleep(0.004)
    return text


def _written_since(path: Path, start: int) -> str:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def _innermost(text: str, internal: tuple[str, ...]) -> Site | None:
    """The innermost line of the user's; one of the standard library only where there is no other."""
    blocks = [text[match.start() :] for match in _THREAD.finditer(text)]
    current = [block for block in blocks if block.startswith("Current")] or blocks[:1]
    frames = _FRAME.findall(current[0]) if current else []
    own = [
        Site(file, int(line), function) for file, line, function in frames if not file.startswith(internal)
    ]
    return next((site for site in own if not in_stdlib(site.file)), own[0] if own else None)
