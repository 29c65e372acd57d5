"""The watchdog of this process: what `lockstep.start` makes."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from esper.lockstep.errors import InterceptionUnavailable, LedgerError, StartError
from esper.lockstep.rank.hooks import check_hooks
from esper.lockstep.rank.intercept import Interception, installed
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.rank.stacks import answer_stack_requests
from esper.lockstep.record.entry import State
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.watchdog.folder import hold_folder, release, remove_if_left, remove_own, reserve
from esper.lockstep.watchdog.localranks import BEAT
from esper.lockstep.watchdog.meeting import Meeting, this_member
from esper.lockstep.watchdog.raising import Raiser
from esper.lockstep.watchdog.thread import WatchThread

ACTIONS = ("raise", "exit")


class _Process:
    """What there is once in a process, as torch's groups and its hooks are."""

    watchdog: Watchdog | None = None
    meetings = 0


_process = _Process()


class Watchdog:
    """Watches until `stop`, or until the process ends. `with lockstep.start(): ...` stops at the end."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._thread: WatchThread | None = None
        self._folder: Path | None = None
        self._held: int | None = None  # the file by which this rank holds the folder
        self._raiser: Raiser | None = None
        self._recorder: Recorder | None = None  # where nobody else records

    @property
    def running(self) -> bool:
        """Whether it watches: False where something kept it from that, where somebody outside does, and after
        its verdict or `stop`.
        """
        return self._thread is not None and self._thread.is_alive()

    def begin(self, patience: float, action: str, run_dir: Path | None) -> None:
        """Raises StartError, LedgerError or InterceptionUnavailable, and has then left nothing behind."""
        present = installed()
        if present is not None and present.judged:
            return
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        meeting = Meeting(_process.meetings, attempt)
        _process.meetings += 1
        if meeting.world_size == 1:
            return  # it waits for nobody
        self._undo.append(meeting.leave)
        try:
            self._folder, self._held = hold_folder(run_dir, meeting.run, attempt)
            folder = self._folder
            self._undo.append(partial(self._release, folder, passing=run_dir is None))
            reserve(folder, meeting.rank, meeting.world_size)
            self._undo.append(partial(release, folder, meeting.rank))
            self._begin(meeting, folder, patience, action)
        except BaseException:
            self.leave()
            if self._folder is not None:
                remove_own(self._folder, meeting.rank)
            raise

    def _begin(self, meeting: Meeting, folder: Path, patience: float, action: str) -> None:
        interception = installed()
        if interception is None:
            interception = self._record(folder, meeting)
        recorder = interception.recorder
        ledger = recorder.ledger
        if (ledger.rank, ledger.world_size) != (meeting.rank, meeting.world_size):
            raise StartError(
                f"rank {meeting.rank} of {meeting.world_size}",
                f"it is recorded as rank {ledger.rank} of {ledger.world_size}",
            )
        reader = LedgerReader(ledger.path.parent, ledger.rank)
        reader.open()
        self._undo.append(reader.close)
        raiser = self._raiser = Raiser(recorder, reader)
        raiser.install()
        self._undo.append(raiser.uninstall)
        ledger.set_own_threads(1)
        ledger.heartbeat()
        self._undo.append(lambda: ledger.set_own_threads(0))
        meeting.enter(this_member(meeting.rank))
        thread = self._thread = WatchThread(
            meeting, folder, recorder, patience, raiser, raises=action == "raise"
        )
        raiser.alert = thread.alert
        thread.start()
        this = weakref.ref(thread)

        watchdog = weakref.ref(self)

        def forked() -> None:
            if (one := this()) is not None:
                one.forget()
            if (outer := watchdog()) is not None:
                outer._forget()

        os.register_at_fork(after_in_child=forked)

        self._undo.append(thread.stop)
        atexit.register(self._at_exit)
        self._undo.append(partial(atexit.unregister, self._at_exit))

    def _release(self, folder: Path, *, passing: bool) -> None:
        """The last of its ranks takes a folder away that was only for this run."""
        self._let_go()
        if passing:
            with suppress(OSError):
                remove_if_left(folder)

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _record(self, folder: Path, meeting: Meeting) -> Interception:
        check_hooks()
        run = bytes.fromhex(meeting.run)
        ledger = Ledger(folder, meeting.rank, meeting.world_size, run=run)
        self._undo.append(ledger.retire)
        self._undo.append(answer_stack_requests(folder, meeting.rank))
        interception = Interception(Recorder(ledger))
        interception.install()
        self._undo.append(interception.uninstall)
        this = weakref.ref(interception)

        def forked() -> None:
            if (one := this()) is not None:
                one.detach()

        os.register_at_fork(after_in_child=forked)
        interception.begin("job")
        self._recorder = interception.recorder
        self._undo.append(lambda: ledger.set_state(State.OVER))
        return interception

    def _forget(self) -> None:
        """In a forked child, which is no rank: its end must take nothing away."""
        self._undo.clear()
        self._let_go()  # or a worker that lives on would keep the last rank from taking the folder away
        self._recorder = None
        if self._raiser is not None:
            self._raiser.forget()
        self._thread = None
        if _process.watchdog is self:
            _process.watchdog = None

    def stop(self) -> None:
        """Stop watching and recording on this rank; once. The others watch no more, either."""
        if self._thread is not None:
            self._thread.tell_of_stop()
        self.leave()

    def leave(self) -> None:
        """Watch no more on this rank, whose program is over; the others go on."""
        while self._undo:
            self._undo.pop()()
        self._thread = None
        if _process.watchdog is self:
            _process.watchdog = None

    def _at_exit(self) -> None:
        """The interpreter goes: the thread must be gone before it does. What it recorded stays as it is."""
        if self._recorder is not None:
            self._recorder.going()
        self.leave()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(patience: float, action: str, run_dir: Path | None) -> Watchdog:
    """As `esper.lockstep.start`."""
    if action not in ACTIONS:
        raise ValueError(f"lockstep.start(action={action!r}): it is one of {', '.join(map(repr, ACTIONS))}")
    if isinstance(patience, bool) or not isinstance(patience, int | float):
        raise TypeError(f"lockstep.start(patience={patience!r}): it is a number of seconds")
    watchdog = Watchdog()
    try:
        present = _process.watchdog
        if present is not None and present.running:
            raise StartError("lockstep.start()", "it has been called before, and watches already")
        if not patience >= 2 * BEAT:
            raise StartError(f"patience={patience!r}", f"it is at least two heartbeats, {2 * BEAT:g} s")
        watchdog.begin(float(patience), action, run_dir)
        _process.watchdog = watchdog
    except (StartError, LedgerError, InterceptionUnavailable) as error:
        rank = f"rank {dist.get_rank()}: " if dist.is_available() and dist.is_initialized() else ""
        with suppress(OSError):
            sys.stderr.write(f"lockstep: {rank}not watching: {error}\n")
    return watchdog


def stop() -> None:
    """As `esper.lockstep.stop`."""
    if _process.watchdog is not None:
        _process.watchdog.stop()


def leave() -> None:
    """As `esper.lockstep.starting.leave`."""
    if _process.watchdog is not None:
        _process.watchdog.leave()
