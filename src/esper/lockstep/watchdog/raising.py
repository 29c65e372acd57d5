"""Brings a verdict to the thread that is stuck: what it waits in fails, and it raises LockstepError.

A thread in C++ is woken by the end of its connections, the main thread in Python by a signal's handler, so
also out of a lock, a sleep, a queue or a loop. What is raised by a peer's end, before there is a verdict, is
held back for a moment: the verdict says more.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from torch.distributed import distributed_c10d as c10d

from esper.lockstep.errors import LockstepError
from esper.lockstep.rank.escapes import Escapes
from esper.lockstep.rank.groups import patch_below
from esper.lockstep.rank.recorder import Recorder, is_victim
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.report.diagnosis import Diagnosis

# A peer's end is seen here within milliseconds, by the watchdog that leads within a look of its own, by the
# others within another, and then all raise.
_VERDICT_WITHIN = 2.5
# Hosts hear of each other once a second, and of who can't say anything more that it is quiet.
_OF_HOSTS_WITHIN = 4.0
# What has raised is not ended by whoever started it before the others could say what they wait for.
_OTHERS_SAY_WITHIN = 0.7
# The same of who raises the verdict: its watchdog sees who else has, and waits for a second twice at most.
_OTHERS_RAISE_WITHIN = 2.5
_STORE_WAITS = ("get", "multi_get", "wait", "barrier", "queue_pop")


class Raiser:
    """What this process does about a verdict with `action="raise"`."""

    def __init__(self, recorder: Recorder, reader: LedgerReader) -> None:
        """`reader`: of this rank's own ledger."""
        self._recorder, self._reader, self._escapes = recorder, reader, Escapes(recorder, reader)
        self.diagnosis: Diagnosis | None = None
        self.raised = threading.Event()
        self.alert: Callable[[], None] = lambda: None  # tells the watchdog that something has failed here
        self.said = threading.Event()  # what was raised has left the program, and is printed
        self.others_said = threading.Event()  # or had the time for it
        self._known = threading.Event()
        self._signal: int | None = None
        self._held: BaseException | None = None  # what was last held back in vain
        self._main = threading.main_thread()
        self._undo: list[Callable[[], None]] = []
        self._verdict_within = _VERDICT_WITHIN

    def expect_hosts(self) -> None:
        """A verdict takes its time: the job is of several hosts."""
        self._verdict_within = _OF_HOSTS_WITHIN

    def install(self) -> None:
        """From now on what a collective raises may become LockstepError, and the main thread can be reached,
        if it is the one that calls this.
        """
        self._recorder.on_victim = self._see_victim
        self._undo.append(lambda: setattr(self._recorder, "on_victim", lambda error, polled: None))
        self._escapes.install()
        self._undo.append(self._escapes.uninstall)
        self._see_store()
        self._see_ends()
        if threading.current_thread() is self._main:
            self._take_signal()

    def uninstall(self) -> None:
        """Put everything back, where nobody else has put something on top of it."""
        self._known.set()  # nothing will come
        self.others_said.set()
        while self._undo:
            self._undo.pop()()

    def forget(self) -> None:
        """In a forked child, which nobody tells a verdict: wait for none."""
        self._recorder.on_victim = lambda error, polled: None
        self._known.set()
        self.others_said.set()
        self._signal = None

    def know(self, diagnosis: Diagnosis) -> None:
        """The verdict is there: what fails from now on fails for it."""
        self.diagnosis = diagnosis
        self._known.set()

    def waiting_threads(self) -> set[int]:
        """The kernel's ids of the threads that wait in a collective now."""
        return self._escapes.waiting_threads()

    def makes_group(self) -> bool:
        """Whether a thread is in the making of a group now."""
        return self._escapes.makes_group()

    def calls(self) -> int:
        """How many calls have been recorded."""
        return self._reader.written()

    def signal_main(self) -> None:
        """Have the main thread raise at its next instruction of Python, or out of what it sleeps in."""
        if self._signal is not None and self._main.ident is not None:
            with suppress(ProcessLookupError):
                signal.pthread_kill(self._main.ident, self._signal)

    def error(self) -> LockstepError | None:
        """What to raise; None while there is no verdict."""
        return None if self.diagnosis is None else LockstepError(self.diagnosis)

    def _see_victim(self, error: Exception, polled: bool) -> None:
        # A call with a time-out of its own is expected to fail; after a verdict it is for that.
        if not polled or self.diagnosis is not None:
            self._instead_of(error)

    def _instead_of(self, cause: BaseException) -> None:
        """Raise LockstepError for what a collective raised, if a verdict is there or comes at once."""
        self.alert()
        self._known.wait(self._verdict_within if self._held is not cause else 0.0)
        self._held = cause
        if (error := self.error()) is not None:
            self.raised.set()
            raise error from cause

    def _take_signal(self) -> None:
        free = (
            number
            for number in range(signal.SIGRTMIN + 8, signal.SIGRTMAX)
            if signal.getsignal(number) == signal.SIG_DFL
        )
        number = next(free, None)
        if number is None:
            return

        def handler(number: int, frame: FrameType | None) -> None:
            if (error := self.error()) is not None and not self.raised.is_set():
                self.raised.set()
                raise error

        signal.signal(number, handler)
        self._signal = number

        def give_back() -> None:
            self._signal = None
            if threading.current_thread() is self._main and signal.getsignal(number) is handler:
                signal.signal(number, signal.SIG_DFL)

        self._undo.append(give_back)

    def _see_store(self) -> None:
        """A wait in the store ends with its connection; until there is a verdict its errors are its own."""

        def seeing(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                try:
                    return original(*args, **kwargs)
                except RuntimeError as error:
                    if self.diagnosis is not None and self._undo:
                        self._instead_of(error)
                    raise

            return call

        for name in _STORE_WAITS:
            if name in vars(c10d.Store):
                self._undo.append(patch_below(c10d.Store, name, seeing(getattr(c10d.Store, name))))

    def _see_ends(self) -> None:
        """An exception that leaves the program is this rank's end, which others may wait for; one that came
        out of C++ past all of ours becomes what it should have been.
        """
        outer, outer_thread = sys.excepthook, threading.excepthook

        def leaving(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            if not self._undo:
                outer(kind, error, trace)
                return
            if issubclass(kind, KeyboardInterrupt):
                self.raised.set()  # as below
                outer(kind, error, trace)
                return
            known = isinstance(error, LockstepError)
            if known or is_victim(error) or self._escapes.has_raised(error):
                better = error if known else self._better(error)
                outer(type(better), better, better.__traceback__)
                if isinstance(better, LockstepError):
                    self.said.set()
                    self.others_said.wait(_OTHERS_RAISE_WITHIN)
                return
            # The program is over for a reason of its own: what a signal raised here would end this hook.
            self.raised.set()
            self._recorder.raised(error)
            outer(kind, error, trace)
            self.said.set()
            self._known.wait(_OTHERS_SAY_WITHIN)

        def thread_leaving(args: threading.ExceptHookArgs) -> None:
            error = args.exc_value
            if error is None or isinstance(error, LockstepError) or self.diagnosis is None or not self._undo:
                outer_thread(args)
                return
            better = self._better(error)
            outer_thread(threading.ExceptHookArgs((type(better), better, better.__traceback__, args.thread)))

        self._undo.append(patch_below(sys, "excepthook", leaving))
        self._undo.append(patch_below(threading, "excepthook", thread_leaving))

    def _better(self, error: BaseException) -> BaseException:
        try:
            self._instead_of(error)
        except LockstepError as better:
            return better.with_traceback(error.__traceback__)
        return error
