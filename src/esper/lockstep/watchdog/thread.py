"""The thread that watches: it beats, looks, and acts on a verdict."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, EpollSelector
from typing import NoReturn

from esper.lockstep.errors import LedgerError, StartError
from esper.lockstep.proof.finding import Patience, ranks_text
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.rank.threads import kernel_id
from esper.lockstep.record.manifest import Manifest, Waits
from esper.lockstep.report.diagnosis import Diagnosis
from esper.lockstep.report.verdict import read_report, write_report
from esper.lockstep.run.process import started, state
from esper.lockstep.watchdog.aborting import NCCL, Aborting, backends
from esper.lockstep.watchdog.folder import Word, release, tell, told
from esper.lockstep.watchdog.hosts.watch import HostsWatch
from esper.lockstep.watchdog.hostwatch import HostWatch
from esper.lockstep.watchdog.localranks import BEAT, LocalRanks
from esper.lockstep.watchdog.meeting import Meeting, Member
from esper.lockstep.watchdog.raising import Raiser
from esper.lockstep.watchdog.requests import answer, write_stacks
from esper.lockstep.watchdog.sockets import Endpoint, call_own_listeners, shut_connections_to, under_way_to

# Seconds between two looks once something has failed, and for how long.
_ALERT, _ALERT_LASTS = 0.005, 3.0
# The same until all have come, at first: what goes wrong before that is not seen while it does.
_MEETING, _MEETING_LASTS = 0.05, 5.0
# For so long what has changed in the folder is looked at again.
_NEWS_FOR = 4 * BEAT
STATUS = 3  # as that of `python -m esper.lockstep run`
# What nothing can be raised in by then is ended.
_RAISED_WITHIN = 10.0
# Nobody else waits for it for longer.
_ABORTED_WITHIN = 2.0
# A thread that has not raised by then waits in the store, say, and not in gloo.
_NEXT_MEANS_AFTER = 0.5
_FLUSHED_WITHIN = 1.0
# Who is not stuck raises, and what is under way arrives, within that, or not at all: a rank is stopped, say.
_SETTLED_WITHIN, _BETWEEN_LOOKS = 0.3, 0.02
_WOKEN_WITHIN = 0.05
# Each looks for a verdict once a beat.
_ALL_WITHIN, _BETWEEN_QUESTIONS = 2 * BEAT, 0.005


class WatchThread(threading.Thread):
    """One rank's."""

    def __init__(
        self,
        meeting: Meeting,
        folder: Path,
        recorder: Recorder,
        patience: float,
        raiser: Raiser,
        *,
        raises: bool,
    ) -> None:
        """`raises`: whether a verdict is raised; if not, it ends the process, and the raiser only holds back
        what has failed until then.
        """
        super().__init__(name="esper.lockstep watchdog", daemon=True)
        self._meeting, self._folder, self._ledger = meeting, folder, recorder.ledger
        self._internal = recorder.internal
        self._patience, self._raiser, self._raises = patience, raiser, raises
        self._stopping = threading.Event()
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watch: HostWatch | HostsWatch | None = None
        self._members: Sequence[Member] = ()
        self._here: Sequence[Member] = ()  # those of this host, once all have come
        self._began = time.monotonic()
        self._told_who_lacks = False
        self._forked = False
        self._alert_until = 0.0
        self._changed = 0.0  # the folder, when looked at last

    def run(self) -> None:
        """Until a verdict, a failure of our own, or `stop`."""
        try:
            with EpollSelector() as selector:
                selector.register(self._wake, EVENT_READ)
                while not self._stopping.is_set():
                    self._ledger.heartbeat()
                    diagnosis = (self._news() and self._read_news()) or self._look(selector)
                    if diagnosis is not None:
                        self._act(diagnosis)
                        return
                    if any(key.fd == self._wake for key, _ in selector.select(self._pause())):
                        self._clear_alarm()
                if self._watch is not None:
                    self._watch.leave()
        except StartError as error:  # for all of them alike, so one says it
            if self._ledger.rank == 0:
                self._say(f"not watching: {error}")
        except Exception as error:  # noqa: BLE001  a watchdog that fails must not end what it watches
            self._say(f"not watching any more: lockstep itself failed ({type(error).__name__}: {error})")
        finally:
            if self._watch is not None:
                self._watch.local.close()

    def alert(self) -> None:
        """Something has failed in this rank: the verdict will come soon, or be found soon."""
        if not self._stopping.is_set():
            self._alert_until = time.monotonic() + _ALERT_LASTS
            with suppress(OSError):  # full: it is awake
                os.write(self._waker, b".")

    def tell_of_stop(self) -> None:
        """The program goes on without."""
        tell(self._folder, self._ledger.rank, Word.STOPPED)

    def stop(self) -> None:
        """End it, from another thread, at once."""
        if self._stopping.is_set() or self._forked:
            return
        self._stopping.set()
        with suppress(OSError):
            os.write(self._waker, b".")
        if threading.current_thread() is not self:
            self.join()
        os.close(self._wake)
        os.close(self._waker)

    def forget(self) -> None:
        """In a forked child, in which there is no such thread."""
        self._forked = True

    def _news(self) -> bool:
        """Whether somebody may have left something in the folder since the last look."""
        try:
            changed = os.stat(self._folder).st_mtime
        except OSError:  # taken away
            return True
        before, self._changed = self._changed, changed
        # Its clock ticks every few milliseconds only: after one change another may bear the same time.
        return changed != before or abs(time.time() - changed) < _NEWS_FOR

    def _read_news(self) -> Diagnosis | None:
        answer(self._folder, self._ledger.rank)
        return self._verdict()

    def _pause(self) -> float:
        now = time.monotonic()
        if now < self._alert_until:
            return _ALERT
        if self._watch is not None:
            return self._watch.pause
        return _MEETING if now - self._began < _MEETING_LASTS else BEAT

    def _clear_alarm(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake, 1 << 12)

    def _look(self, selector: EpollSelector) -> Diagnosis | None:
        if self._watch is None:
            if not self._all_have_come():
                return None
            self._watch = self._watch_over(selector)
        found = self._watch.look()
        if self._watch.saw_an_end:
            self._alert_until = time.monotonic() + _ALERT_LASTS
        if self._watch.broken is not None:
            raise RuntimeError(self._watch.broken.rstrip().rpartition("\n")[2])
        if found is None or any(told(self._folder, one.rank, Word.STOPPED) for one in self._members):
            return None  # what one of them does now nobody records
        try:
            report = self._watch.report()
            release(self._folder, self._ledger.rank)  # not before, or somebody else may take the room
            first = write_report(self._folder, report)
        except LedgerError as error:  # the others can't be told, but what fails for them then they see
            self._say(f"{found.message}\n  no evidence: {error}")
            return found
        if not first:
            return self._verdict() or found
        self._say(f"{found.message}\n  evidence: python -m esper.lockstep explain {self._folder}")
        return found

    def _verdict(self) -> Diagnosis | None:
        report = read_report(self._folder)
        return report.diagnoses[0] if report is not None and report.diagnoses else None

    def _all_have_come(self) -> bool:
        self._members = self._meeting.members()
        if self._meeting.complete:
            self._agree()
            return True
        if not self._told_who_lacks and time.monotonic() - self._began > self._patience:
            self._told_who_lacks = True
            present = {member.rank for member in self._members}
            lacking = ranks_text(set(range(self._meeting.world_size)) - present)
            if self._ledger.rank == min(present):
                self._say(
                    f"not watching yet: {lacking} did not call lockstep.start() in {self._patience:g} s"
                )
        return False

    def _watch_over(self, selector: EpollSelector) -> HostWatch | HostsWatch:
        """Raises StartError where the store does not answer."""
        manifest, ledgers = self._manifest(), self._ledger.path.parent
        with suppress(LedgerError):  # no room: a post-mortem asks the ledgers
            manifest.write(self._folder)
        own = next(one.host for one in self._members if one.rank == self._ledger.rank)
        self._here = [member for member in self._members if member.host == own]
        local = LocalRanks(ledgers, self._ledger.rank, self._here, selector, self._began)
        if len(self._here) == len(self._members):
            return HostWatch(self._folder, ledgers, local, self._patience, self._internal)
        self._raiser.expect_hosts()
        try:
            return HostsWatch(
                self._folder,
                ledgers,
                local,
                self._patience,
                self._internal,
                self._meeting,
                self._members,
                manifest,
            )
        except RuntimeError as error:
            raise StartError("the job's store", str(error).partition("\n")[0]) from error

    def _manifest(self) -> Manifest:
        return Manifest(
            run=self._meeting.run,
            world_size=self._meeting.world_size,
            started=time.time(),
            patience=Waits(self._patience, self._patience, Patience.compiling),
            hosts={member.rank: member.host_name for member in self._members},
        )

    def _agree(self) -> None:
        """Raises StartError where ranks began to count at different places: they would seem to differ."""
        first = self._members[0]
        for other in self._members[1:]:
            for group in first.positions.keys() & other.positions.keys():
                if first.positions[group] != other.positions[group]:
                    raise StartError(
                        f"lockstep.start() came after {first.positions[group]} collectives on rank "
                        f"{first.rank} and after {other.positions[group]} on rank {other.rank}",
                        "it belongs at the same place on every rank",
                    )

    def _act(self, diagnosis: Diagnosis) -> None:
        release(self._folder, self._ledger.rank)
        with suppress(OSError):
            write_stacks(self._folder, self._ledger.rank, None)
        raiser, rank = self._raiser, self._ledger.rank
        tell(self._folder, rank, Word.SEES)
        if not self._raises:
            tell(self._folder, rank, Word.KNOWS)
            self._await_others(Word.KNOWS)
            self._end()
        stuck = raiser.waiting_threads()
        # Whoever started the ranks ends all of them once one has ended: each is to say it before that. Who is
        # elsewhere takes longer to reach; who is stuck waits for it, and it for none but those who have not
        # looked yet.
        if stuck:
            tell(self._folder, rank, Word.KNOWS)
        self._await_others(Word.KNOWS if stuck else Word.SEES)
        raiser.know(diagnosis)
        self._raise(raiser, stuck)
        tell(self._folder, rank, Word.KNOWS)
        end = time.monotonic() + _ALL_WITHIN
        while not (raiser.said.is_set() or self._stopping.is_set()) and time.monotonic() < end:
            time.sleep(_BETWEEN_QUESTIONS)
        tell(self._folder, rank, Word.SAID)
        self._await_others(Word.SAID, stopping=True)
        raiser.others_said.set()

    def _await_others(self, word: Word, *, stopping: bool = False) -> None:
        """For a moment, until all whose watchdogs live have left this word; `stopping`: also while this one
        is to stop.
        """
        end = time.monotonic() + _ALL_WITHIN
        while time.monotonic() < end and (stopping or not self._stopping.is_set()):
            watching = [member.rank for member in self._here if self._watches(member.rank)]
            if all(told(self._folder, rank, word) for rank in watching):
                return
            time.sleep(_BETWEEN_QUESTIONS)

    def _continue_stopped(self) -> None:
        """A stopped rank can neither raise nor end. Continued while another is still connected to it, it
        would complete what that one waits in, and both would go on.
        """
        stopped = [
            member.pid
            for member in self._here
            if state(member.pid) == "T" and started(member.pid) == member.started  # and no other's number
        ]
        if stopped:
            self._await_others(Word.APART, stopping=True)
            if len(self._here) < len(self._members):
                time.sleep(_ALL_WITHIN)  # those of other hosts leave no word here
        for pid in stopped:
            with suppress(OSError):  # killed meanwhile
                os.kill(pid, signal.SIGCONT)

    def _watches(self, rank: int) -> bool:
        return rank == self._ledger.rank or (self._watch is not None and self._watch.local.beats(rank))

    def _raise(self, raiser: Raiser, stuck: Collection[int]) -> None:
        if self._stopping.is_set():
            return
        main = kernel_id(threading.main_thread())
        peers = [member.pid for member in self._here if member.pid != os.getpid()]
        ends = () if self._watch is None else self._watch.ends
        end = time.monotonic() + _RAISED_WITHIN
        if on_streams := backends(NCCL):
            # Who waits for a stream goes on as if all were well; with the signal it raises there and then.
            raiser.signal_main()
            aborting = Aborting(on_streams)
            aborting.start()
            aborting.join(_ABORTED_WITHIN)
        stuck = self._settle(raiser, peers, ends)
        # NCCL's own are among them: at their end, without the abort, torch would end the process.
        shut_connections_to(peers, ends=ends, how=socket.SHUT_RD)
        raiser.raised.wait(_WOKEN_WITHIN)
        shut_connections_to(peers, ends=ends)
        tell(self._folder, self._ledger.rank, Word.APART)
        self._continue_stopped()
        wait = _NEXT_MEANS_AFTER if stuck else _ALERT
        while not raiser.raised.wait(wait) and not self._stopping.is_set():
            if time.monotonic() > end:
                self._say(f"rank {self._ledger.rank} can't be made to raise, so it ends")
                self._end()
            wait = _NEXT_MEANS_AFTER
            stuck = raiser.waiting_threads()  # what it waited for may have come after all
            shut_connections_to(peers, ports := self._meeting.store_ports(), ends)
            if not stuck or main in stuck:
                raiser.signal_main()
            # Of two of gloo's ranks that connect one only waits to be called, with nothing to be shut.
            if raiser.makes_group():
                call_own_listeners(self._meeting.world_size, besides=ports)

    def _settle(self, raiser: Raiser, peers: Sequence[int], ends: Collection[Endpoint]) -> Collection[int]:
        """Let what is under way arrive, and who is on the way raise; the threads that are stuck then."""
        end = time.monotonic() + _SETTLED_WITHIN
        before: object = None
        while True:
            stuck = raiser.waiting_threads()
            # In a collective it raises by its connections' end; in the midst of torch a handler would.
            if not stuck:
                raiser.signal_main()
            now = (stuck, raiser.calls(), under_way_to(peers, ends))
            if now == before or raiser.raised.is_set() or time.monotonic() > end:
                return stuck
            before = now
            time.sleep(_BETWEEN_LOOKS)

    def _end(self) -> NoReturn:
        # Whoever is stuck may hold the lock of a stream.
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(_FLUSHED_WITHIN)
        tell(self._folder, self._ledger.rank, Word.APART)
        self._continue_stopped()
        leave: Callable[[int], NoReturn] = getattr(os._exit, "__wrapped__", os._exit)
        leave(STATUS)  # past what records it: this end is not the program's

    def _say(self, text: str) -> None:
        # Past Python's stream, whose lock the thread that is stuck may hold.
        with suppress(OSError):
            os.write(2, f"lockstep: {text}\n".encode(errors="backslashreplace"))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
