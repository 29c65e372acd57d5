"""In the rank: what collectives raise out of C++ past `Work.wait`, and which threads are in one now.

What the reducer's collectives raise comes out of autograd, what a functional one raises out of the first use
of its result: with no frame of ours on the way, so only this rank's own ledger can tell whose it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch.autograd

from esper.lockstep.errors import LockstepError
from esper.lockstep.rank.groups import patch_below
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Flag, Kind, Time, Times
from esper.lockstep.record.reader import LedgerReader

# Records to look at for what a rank waits in: nobody has more open calls than that.
_OPEN = 256
_MAKE_GROUPS = ("new_group", "init_process_group")


class Escapes:
    """Tells the recorder of what leaves autograd's engine or a functional result's wait for a peer's sake."""

    def __init__(self, recorder: Recorder, reader: LedgerReader) -> None:
        """`reader`: of this rank's own ledger."""
        self._recorder, self._reader = recorder, reader
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Patch torch's two places."""
        from torch.distributed import _functional_collectives as functional

        for holder, name in (
            (torch.autograd.graph, "_engine_run_backward"),
            (torch.autograd, "_engine_run_backward"),
            (getattr(functional, "AsyncCollectiveTensor", None), "trigger_wait"),
        ):
            if (original := getattr(holder, name, None)) is not None:
                self._undo.append(patch_below(holder, name, self._telling(original)))

    def uninstall(self) -> None:
        """Put them back, where nobody else has put something on top."""
        while self._undo:
            self._undo.pop()()

    def waiting_threads(self) -> set[int]:
        """The kernel's ids of the threads that wait in a collective now."""
        last, waits = self._open_calls()
        return {
            times.thread
            for number, times in waits.items()
            if not times.done and (not times.flags & Flag.NATIVE or last[times.thread] == number)
        }

    def makes_group(self) -> bool:
        """Whether a thread is in the making of a group now."""
        return any(self._reader.entry(number).op in _MAKE_GROUPS for number in self._open_calls()[1])

    def has_raised(self, error: BaseException) -> bool:
        """Whether this thread's last call is one from C++, whose end nobody sees, and `error` may be that."""
        return self._raised_by(error) is not None

    def _raised_by(self, error: BaseException) -> int | None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        own = trace is not None and not self._recorder.is_internal(trace.tb_frame.f_code.co_filename)
        if own or not self._undo or not isinstance(error, RuntimeError) or isinstance(error, LockstepError):
            return None
        last, waits = self._open_calls()
        number = last.get(threading.get_native_id(), -1)
        times = waits.get(number)
        return number if times is not None and times.flags & Flag.NATIVE else None

    def _telling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except RuntimeError as error:
                if (number := self._raised_by(error)) is not None:
                    self._recorder.ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED)
                    self._recorder.victim(error)
                raise

        return call

    def _open_calls(self) -> tuple[dict[int, int], dict[int, Times]]:
        """The last call of each thread, and all that are waited for."""
        last: dict[int, int] = {}
        waits: dict[int, Times] = {}
        for number, kind, times in self._reader.since(self._reader.written() - _OPEN):
            if kind != Kind.COLLECTIVE:
                continue
            last[times.thread] = number
            waited = times.flags & Flag.WAITED or times.wait_begun
            inside = times.wait_ended == 0.0 or times.wait_begun > times.wait_ended
            if waited and inside:
                waits[number] = times
        return last, waits
