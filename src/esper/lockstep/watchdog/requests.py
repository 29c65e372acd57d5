"""Stacks on request, between the watchdogs of one host: asked by a file, written by the rank's own thread.

That thread holds the GIL while it looks, so no other one runs. The signal that C code answers catches a
thread at any instruction, and CPython 3.11 dies of one in some 10,000; it is for a rank that does not answer.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.rank.threads import kernel_id
from esper.lockstep.run.evidence import BySignal


def _asked_path(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.asked"


class ByFile:
    """How the rank that leads asks the others, and itself."""

    # Two of their looks, and the writing.
    within = 1.2

    def __init__(
        self, folder: Path, rank: int, pids: Mapping[int, int], beats: Callable[[int], bool]
    ) -> None:
        """`rank`: this one. `beats`: whether a rank's watchdog has been heard of just now."""
        self._folder, self._rank, self._beats = folder, rank, beats
        self._ranks = {pid: rank for rank, pid in pids.items()}
        self._by_signal = BySignal()

    def ask(self, pid: int, thread: int | None) -> None:
        """Ask for the stacks. Raises OSError where it can't be."""
        rank = self._ranks[pid]
        if rank == self._rank:
            write_stacks(self._folder, rank, thread)
        elif self._beats(rank):
            unfinished = self._folder / f"rank{rank}.asking"
            unfinished.touch(mode=0o600)
            unfinished.write_text("" if thread is None else str(thread))
            os.replace(unfinished, _asked_path(self._folder, rank))
        else:
            self._by_signal.ask(pid, thread)


def answer(folder: Path, rank: int) -> None:
    """Write this rank's stacks if somebody has asked for them."""
    path = _asked_path(folder, rank)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):
        path.unlink()
    with suppress(OSError):
        write_stacks(folder, rank, int(text) if text else None)


def write_stacks(folder: Path, rank: int, thread: int | None) -> None:
    """Append all threads' stacks, as faulthandler writes them, that of `thread` (the kernel's id; None: the
    main thread) last and as the current one. Raises OSError.
    """
    wanted = kernel_id(threading.main_thread()) if thread is None else thread
    frames = sys._current_frames()
    blocks, current = [], ""
    for one in threading.enumerate():
        frame = frames.get(one.ident or 0)
        if frame is None or one is threading.current_thread():
            continue
        is_wanted = kernel_id(one) == wanted
        block = _block("Current thread" if is_wanted else "Thread", one.ident or 0, frame)
        if is_wanted:
            current = block
        else:
            blocks.append(block)
    text = f"\n{time.ctime()}\n" + "\n".join([*blocks, current])
    with open(stack_path(folder, rank), "a") as file:
        file.write(text)


def _block(title: str, ident: int, frame: FrameType | None) -> str:
    lines = [f"{title} 0x{ident:016x} (most recent call first):"]
    while frame is not None:
        lines.append(
            f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_qualname}'
        )
        frame = frame.f_back
    return "\n".join(lines) + "\n"
